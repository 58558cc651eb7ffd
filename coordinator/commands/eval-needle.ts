/**
 * `tpla eval needle`: whether a fact is found again in a long text, for every length and every depth. The text is made
 * here (../eval/haystack.ts); the model goes on behind the beginning of the fact and must write its number. What is
 * written runs with the attention of decode. A heat map goes to --picture, or beside --out.
 */
import { writeFile } from 'node:fs/promises';
import type { Argv } from 'yargs';
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';
import { layOut } from '../cluster-layout.ts';
import type { CommandContext } from '../command-context.ts';
import { answer } from '../eval/answering.ts';
import { needleOf, promptOf } from '../eval/haystack.ts';
import { heatMapSvg, type HeatMap } from '../eval/heat-map.ts';
import { ResumableWork } from '../eval/resumable.ts';
import { schemeSettings } from '../eval/settings.ts';
import { clusterFlags, jsonFlag, number, outFlag, type FlagsOf } from '../flags.ts';
import { openModel, startCluster } from '../session.ts';
import { formatTable } from '../table.ts';
import { openText } from '../text.ts';

const needleFlags = <T>(command: Argv<T>) =>
  jsonFlag(clusterFlags(command))
    .option('lengths', {
      type: 'string',
      default: '512,1024,2048',
      describe: 'tokens of the prompts, by commas; --context defaults to the longest and 16 more',
    })
    .option('depths', number('depths', 1, 100, true, 5, 'depths, evenly from the first sentence to the last'))
    .option('trials', number('trials', 1, 1000, true, 2, 'texts for each length and depth, each with its own fact'))
    .option('seed', number('seed', 0, 0xffffffff, true, 0, 'of the texts; the same seed gives the same texts'))
    .option('picture', { type: 'string', describe: 'SVG file for the heat map (default: beside --out)' })
    .option('out', outFlag);

type NeedleFlags = FlagsOf<ReturnType<typeof needleFlags>>;

const answerTokens = 12;
const resultSchema = z.strictObject({ tokens: z.number(), right: z.boolean(), written: z.string() });

export function addEvalNeedleCommand<T>(program: Argv<T>, context: CommandContext): Argv<T> {
  return program.command(
    'needle',
    'retrieval of a fact at every depth of texts of several lengths, with a heat map',
    (command) => needleFlags(command),
    (flags) => evalNeedle(flags, context),
  );
}

async function evalNeedle(flags: NeedleFlags, context: CommandContext): Promise<void> {
  const { trials, seed } = flags;
  const lengths = wholeNumbers(flags.lengths);
  const needed = Math.max(...lengths) + answerTokens;
  await using model = await openModel({ ...flags, context: flags.context ?? needed + 4 }, context);
  const layout = layOut(model.checkpoint, model.config);
  if (layout.options.contextTokens < needed)
    throw new ConfigError(
      `--lengths: ${Math.max(...lengths)} tokens and ${answerTokens} of the answer do not fit a context of ${layout.options.contextTokens}`,
    );
  const text = await openText(model.checkpoint.path);
  const depths = Array.from({ length: flags.depths }, (_, i) => (flags.depths === 1 ? 0.5 : i / (flags.depths - 1)));
  const cells = depths.flatMap((depth) =>
    lengths.flatMap((length) => Array.from({ length: trials }, (_, trial) => ({ depth, length, trial }))),
  );
  const settings = {
    command: 'needle',
    lengths,
    depths,
    trials,
    seed,
    ...schemeSettings(model.checkpoint, layout),
  };
  const work = await ResumableWork.open(flags.out, settings, context.log);
  await using cluster = await startCluster(model, context);
  const results = await work.run({
    label: 'searching',
    unit: 'texts',
    items: cells,
    schema: resultSchema,
    async work({ depth, length, trial }, index) {
      const needle = needleOf(seed + index);
      const prompt = promptOf(needle, depth, length, seed + trial, (words) => text.encodeRaw(words).length);
      const ids = text.encodeRaw(prompt);
      const written = await answer(cluster, text, ids, answerTokens, context.signal);
      return { tokens: ids.length, right: written.trimStart().startsWith(needle.answer), written };
    },
  });
  const values = depths.map((depth) =>
    lengths.map((length) => {
      const own = results.filter((_, i) => cells[i]?.depth === depth && cells[i]?.length === length);
      return own.filter(({ right }) => right).length / own.length;
    }),
  );
  const accuracy = results.filter(({ right }) => right).length / results.length;
  const report = { accuracy, ...settings, grid: values, answers: results };
  const map: HeatMap = {
    title: `Needle found, ${layout.plan.scheme} on ${layout.plan.worldSize} ranks`,
    columnTitle: 'tokens',
    rowTitle: 'depth',
    columns: lengths.map(String),
    rows: depths.map((depth) => `${Math.round(100 * depth)} %`),
    values,
  };
  const picture = flags.picture ?? (flags.out === undefined ? undefined : `${flags.out.replace(/\.json$/, '')}.svg`);
  if (picture !== undefined) await writeFile(picture, heatMapSvg(map));
  await work.finish(report);
  if (flags.json) return context.write(`${JSON.stringify(report)}\n`);
  const percent = (share: number): string => `${Math.round(100 * share)} %`;
  const rows = map.rows.map((name, i) => [name, ...(values[i] ?? []).map(percent)]);
  const where = picture === undefined ? '' : `; heat map in ${picture}`;
  context.write(
    `${formatTable(['depth', ...map.columns], rows)}\nfound ${percent(accuracy)} of ${results.length}, ` +
      `${layout.plan.scheme} on ${layout.plan.worldSize} ranks${where}\n`,
  );
}

function wholeNumbers(given: string): number[] {
  return given.split(',').map((word) => {
    const value = Number(word);
    if (/^\s*\d+\s*$/.test(word) && value >= 64) return value;
    throw new ConfigError(`--lengths: expected whole numbers from 64 by commas, got ${given}`);
  });
}
