/**
 * `tpla eval choice`: multiple choice, JSONL lines {task, question, choices, answer}. Every choice is scored as the
 * continuation of the question by the sum of its tokens' log-probabilities, as it is and divided by the choice's length in
 * bytes; the highest wins. The question is prefilled, the choices run with the attention of decode, as a generation would.
 */
import type { Argv } from 'yargs';
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';
import { layOut } from '../cluster-layout.ts';
import type { Cluster } from '../cluster.ts';
import type { CommandContext } from '../command-context.ts';
import { score } from '../engine.ts';
import { accuracyOf, continuationsOf, indexOfLargest, type TokenPair } from '../eval/choices.ts';
import { limitPerTask, readItems } from '../eval/items.ts';
import { ResumableWork } from '../eval/resumable.ts';
import { schemeSettings } from '../eval/settings.ts';
import { clusterFlags, jsonFlag, number, outFlag, type FlagsOf } from '../flags.ts';
import { openModel, startCluster } from '../session.ts';
import { formatTable } from '../table.ts';
import { openText } from '../text.ts';

const choiceFlags = <T>(command: Argv<T>) =>
  jsonFlag(clusterFlags(command))
    .option('items', {
      type: 'string',
      demandOption: true,
      describe: 'JSONL file of {task, question, choices, answer}; answer: index of the right choice, from 0',
    })
    .option('max-items', number('max-items', 0, 1_000_000, true, 0, 'items of each task; 0: all'))
    .option('cue', {
      choices: ['auto', 'answer', 'none'] as const,
      default: 'auto' as const,
      describe:
        'between question and choice; answer: a line "Answer:"; auto: that, but for tasks that end in mid-sentence',
    })
    .option('out', outFlag);

type ChoiceFlags = FlagsOf<ReturnType<typeof choiceFlags>>;

const itemSchema = z
  .object({
    task: z.string(),
    question: z.string().min(1),
    choices: z.array(z.string().min(1)).min(2),
    answer: z.number().int().nonnegative(),
    /** Partial scoring: the same continuation behind each of these. */
    context_options: z.array(z.string().min(1)).optional(),
    continuation: z.string().min(1).optional(),
  })
  .refine(({ choices, answer }) => answer < choices.length, 'answer is not the index of a choice');

const resultSchema = z.strictObject({
  task: z.string(),
  answer: z.number(),
  /** Natural logarithms, one for each choice. */
  logprobs: z.array(z.number()),
  lengths: z.array(z.number()),
});

export function addEvalChoiceCommand<T>(program: Argv<T>, context: CommandContext): Argv<T> {
  return program.command(
    'choice',
    'multiple choice: JSONL of {task, question, choices, answer}',
    (command) => choiceFlags(command),
    (flags) => evalChoice(flags, context),
  );
}

async function evalChoice(flags: ChoiceFlags, context: CommandContext): Promise<void> {
  const items = limitPerTask(await readItems(flags.items, itemSchema), flags.maxItems);
  await using model = await openModel(flags, context);
  const text = await openText(model.checkpoint.path);
  const layout = layOut(model.checkpoint, model.config);
  const prepared = items.map((item) => ({ ...item, pairs: continuationsOf(item, flags.cue, text) }));
  const longest = Math.max(...prepared.flatMap(({ pairs }) => pairs.map(({ ids }) => ids.length)));
  if (longest > layout.options.contextTokens)
    throw new ConfigError(
      `--items: the longest question has ${longest} tokens with its choice, the context ${layout.options.contextTokens}; raise --context`,
    );
  const { items: file, maxItems, cue } = flags;
  const settings = { command: 'choice', file, maxItems, cue, ...schemeSettings(model.checkpoint, layout) };
  const work = await ResumableWork.open(flags.out, settings, context.log);
  await using cluster = await startCluster(model, context);
  const results = await work.run({
    label: 'scoring',
    unit: 'questions',
    items: prepared,
    schema: resultSchema,
    async work({ task, answer, pairs }) {
      const logprobs: number[] = [];
      for (const pair of pairs) logprobs.push(await logprobOf(cluster, pair));
      return { task, answer, logprobs, lengths: pairs.map(({ bytes }) => bytes) };
    },
  });
  const tasks = Object.fromEntries(
    [...new Set(results.map(({ task }) => task))].map((task) => {
      const own = results.filter((result) => result.task === task);
      return [task, accuracyOf(own)];
    }),
  );
  const picks = results.map(({ logprobs }) => indexOfLargest(logprobs));
  const report = { tasks, ...settings, picks };
  await work.finish(report);
  if (flags.json) return context.write(`${JSON.stringify(report)}\n`);
  const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
  const rows = Object.entries(tasks).map(([task, of]) => [
    task,
    percent(of.accuracy),
    percent(of.normalizedAccuracy),
    `${percent(of.standardError)}`,
    String(of.items),
  ]);
  const table = formatTable(['task', 'sum', 'per byte', 'std. error', 'items'], rows);
  context.write(`${table}\n${layout.plan.scheme} on ${layout.plan.worldSize} ranks\n`);
}

/** The last token of the question runs in decode: it predicts the first of the choice. */
async function logprobOf(cluster: Cluster, { ids, from }: TokenPair): Promise<number> {
  const nll = await score(cluster, { ids, decodeFrom: from - 1 });
  return -nll.subarray(from).reduce((sum, value) => sum + value, 0);
}
