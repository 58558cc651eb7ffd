/** `tpla eval`: what a model, a conversion or a scheme costs in quality. One file for each question. */
import type { Argv } from 'yargs';
import type { CommandContext } from '../command-context.ts';
import { addEvalChoiceCommand } from './eval-choice.ts';
import { addEvalKlCommand } from './eval-kl.ts';
import { addEvalLogitsCommand } from './eval-logits.ts';
import { addEvalLongctxCommand } from './eval-longctx.ts';
import { addEvalNeedleCommand } from './eval-needle.ts';
import { addEvalPplCommand } from './eval-ppl.ts';

/** One file beside this each. */
const questions = [
  addEvalPplCommand,
  addEvalKlCommand,
  addEvalChoiceCommand,
  addEvalNeedleCommand,
  addEvalLongctxCommand,
  addEvalLogitsCommand,
];

export function addEvalCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'eval',
    'measure quality: perplexity, divergence, multiple choice, retrieval, raw logits',
    (command) =>
      questions
        .reduce((built, add) => add(built, context), command)
        .demandCommand(1, 'eval: name what to measure: ppl, kl, choice, needle, longctx or logits'),
  );
}
