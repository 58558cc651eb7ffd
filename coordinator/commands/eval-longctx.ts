/**
 * `tpla eval longctx`: retrieval from long prompts, JSONL lines {task, prompt, answers}: key-value retrieval (Lost in the
 * Middle, arXiv 2307.03172), LongEval lines and topics. Answers are written greedily; right if one of `answers` occurs in
 * what was written, without regard to case. Prompts that do not fit the context are left out and counted.
 */
import type { Argv } from 'yargs';
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';
import { layOut } from '../cluster-layout.ts';
import type { CommandContext } from '../command-context.ts';
import { answer } from '../eval/answering.ts';
import { limitPerTask, readItems } from '../eval/items.ts';
import { ResumableWork } from '../eval/resumable.ts';
import { schemeSettings } from '../eval/settings.ts';
import { clusterFlags, jsonFlag, number, outFlag, type FlagsOf } from '../flags.ts';
import { openModel, startCluster } from '../session.ts';
import { formatTable } from '../table.ts';
import { openText } from '../text.ts';

const longctxFlags = <T>(command: Argv<T>) =>
  jsonFlag(clusterFlags(command))
    .option('items', { type: 'string', demandOption: true, describe: 'JSONL file of {task, prompt, answers}' })
    .option('max-items', number('max-items', 0, 1_000_000, true, 0, 'items of each task; 0: all'))
    .option('max-tokens', number('max-tokens', 1, 4096, true, 48, 'most tokens of an answer'))
    .option('raw', {
      type: 'boolean',
      default: false,
      describe: 'continue the prompt as it is instead of answering it through the chat template',
    })
    .option('out', outFlag);

type LongctxFlags = FlagsOf<ReturnType<typeof longctxFlags>>;

const itemSchema = z.object({
  task: z.string(),
  prompt: z.string().min(1),
  answers: z.array(z.string().min(1)).min(1),
});
const resultSchema = z.strictObject({ task: z.string(), tokens: z.number(), right: z.boolean(), written: z.string() });

export function addEvalLongctxCommand<T>(program: Argv<T>, context: CommandContext): Argv<T> {
  return program.command(
    'longctx',
    'retrieval from long prompts: JSONL of {task, prompt, answers}',
    (command) => longctxFlags(command),
    (flags) => evalLongctx(flags, context),
  );
}

async function evalLongctx(flags: LongctxFlags, context: CommandContext): Promise<void> {
  const items = limitPerTask(await readItems(flags.items, itemSchema), flags.maxItems);
  await using model = await openModel(flags, context);
  const text = await openText(model.checkpoint.path);
  const layout = layOut(model.checkpoint, model.config);
  const prompts = items.map((item) => ({
    ...item,
    ids: flags.raw ? text.encodeRaw(item.prompt) : text.encodeChat(item.prompt, undefined),
  }));
  const fitting = prompts.filter(({ ids }) => ids.length + flags.maxTokens <= layout.options.contextTokens);
  if (fitting.length === 0)
    throw new ConfigError(
      `--items: none of ${items.length} prompts fits a context of ${layout.options.contextTokens}; raise --context`,
    );
  const { items: file, raw, maxTokens, maxItems } = flags;
  const settings = { command: 'longctx', file, raw, maxTokens, maxItems, ...schemeSettings(model.checkpoint, layout) };
  const work = await ResumableWork.open(flags.out, settings, context.log);
  await using cluster = await startCluster(model, context);
  const results = await work.run({
    label: 'answering',
    unit: 'prompts',
    items: fitting,
    schema: resultSchema,
    async work({ task, ids, answers }) {
      const written = await answer(cluster, text, ids, maxTokens, context.signal);
      const right = answers.some((expected) => written.toLowerCase().includes(expected.toLowerCase()));
      return { task, tokens: ids.length, right, written };
    },
  });
  const tasks = Object.fromEntries(
    [...new Set(results.map(({ task }) => task))].map((task) => {
      const own = results.filter((result) => result.task === task);
      const meanTokens = own.reduce((sum, { tokens }) => sum + tokens, 0) / own.length;
      return [task, { accuracy: own.filter(({ right }) => right).length / own.length, items: own.length, meanTokens }];
    }),
  );
  const report = { tasks, tooLong: items.length - fitting.length, ...settings, answers: results };
  await work.finish(report);
  if (flags.json) return context.write(`${JSON.stringify(report)}\n`);
  const rows = Object.entries(tasks).map(([task, { accuracy, items: count, meanTokens }]) => [
    task,
    `${(100 * accuracy).toFixed(1)} %`,
    String(count),
    meanTokens.toFixed(0),
  ]);
  const left = report.tooLong === 0 ? '' : `; ${report.tooLong} prompts did not fit the context and were left out`;
  context.write(
    `${formatTable(['task', 'right', 'items', 'tokens'], rows)}\n${layout.plan.scheme} on ${layout.plan.worldSize} ranks${left}\n`,
  );
}
