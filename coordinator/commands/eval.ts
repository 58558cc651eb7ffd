/** `tpla eval`: what a model, a conversion or a scheme costs in quality. One file for each question. */
import type { Argv } from 'yargs';
import type { CommandContext } from '../command-context.ts';
import { addEvalLogitsCommand } from './eval-logits.ts';
import { addEvalPplCommand } from './eval-ppl.ts';

export function addEvalCommand(program: Argv, context: CommandContext): Argv {
  return program.command('eval', 'measure quality: perplexity, raw logits', (command) =>
    addEvalLogitsCommand(addEvalPplCommand(command, context), context).demandCommand(
      1,
      'eval: name what to measure, ppl or logits',
    ),
  );
}
