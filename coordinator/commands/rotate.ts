/**
 * `tpla rotate MODEL --out DIR`: fits what scheme tpla can be corrected by, for one number of latent groups and of exact
 * tokens, on a calibration text. The model itself stays as it is; runs name the folder with --corrections.
 * Read next: worker/schemes/fit-session.ts, model/tpla/decode-fit.ts.
 */
import { createHash } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Argv } from 'yargs';
import { defaultExactTokens, maxExactTokens, reparameterizationNames } from '../../config/cluster.ts';
import { ConfigError } from '../../config/errors.ts';
import { nearTokens } from '../../config/near-tokens.ts';
import { fitSteps, type FitStep } from '../../config/schemes.ts';
import { maxWorldSize } from '../../config/shard-plan.ts';
import { fitFileName, splitFit, writeFit, type FitShape, type LayerFit } from '../../model/tpla/decode-fit.ts';
import type { CommandContext } from '../command-context.ts';
import { readWindows } from '../convert/calibration-text.ts';
import { jsonFlag, number, optionalNumber, ownRanksFlags, type FlagsOf } from '../flags.ts';
import { startProgress } from '../progress.ts';
import { openModel, startCluster } from '../session.ts';
import { openText } from '../text.ts';

/** Tokens of a calibration window. */
const windowTokens = 512;

const rotateFlags = <T>(command: Argv<T>) =>
  ownRanksFlags(jsonFlag(command), 'worker processes, a multiple of --latent-groups (default: as many)')
    .positional('model', {
      type: 'string',
      demandOption: true,
      describe: 'MLA model, native or converted: Hugging Face folder or GGUF file',
    })
    .option('out', {
      type: 'string',
      demandOption: true,
      describe: 'folder for the corrections; may be that of the model',
    })
    .option('latent-groups', number('latent-groups', 2, maxWorldSize, true, 2, 'latent shards to correct for'))
    .option('window', {
      ...optionalNumber('window', 0, maxExactTokens, true, 'last tokens that will be scored exactly'),
      defaultDescription: `${defaultExactTokens.window}, or those that a converted model keeps`,
    })
    .option('sinks', {
      ...optionalNumber('sinks', 0, maxExactTokens, true, 'first tokens that will be scored exactly'),
      defaultDescription: `${defaultExactTokens.sinks}, or those that a converted model keeps`,
    })
    .option('overlap', number('overlap', 0, 4096, true, 0, 'first latent columns that every group will keep'))
    .option('reparam', {
      choices: reparameterizationNames,
      default: 'weighted' as const,
      describe: 'rotation of the latent before it is cut',
    })
    .option('without', {
      array: true,
      choices: fitSteps,
      default: [] as FitStep[],
      defaultDescription: 'none',
      describe:
        'corrections to leave out, to see what each is worth. order: which columns stand first, of models with a latent norm only; keys: what a shard guesses of the others; offsets: of old tokens beside those scored exactly; values: W_UV',
    })
    .option('calibration', {
      type: 'string',
      array: true,
      demandOption: true,
      describe:
        'UTF-8 text to fit on, ideally like the later use; may be given several times, each file gives an equal share',
    })
    .option('calibration-tokens', number('calibration-tokens', 64, 10_000_000, true, 8192, 'tokens to fit on'));

type RotateFlags = FlagsOf<ReturnType<typeof rotateFlags>>;

export function addRotateCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'rotate <model>',
    'fit the corrections of scheme tpla for an MLA model, without training',
    (command) => rotateFlags(command),
    (flags) => rotate(flags, context),
  );
}

async function rotate(flags: RotateFlags, context: CommandContext): Promise<void> {
  const length = Math.min(windowTokens, flags.calibrationTokens);
  // --calibration is for the fit here; opening the model would take it for a conversion's.
  const { calibration, calibrationTokens, without, ...modelFlags } = flags;
  await using model = await openModel(
    {
      ...modelFlags,
      scheme: 'tpla',
      ranks: flags.ranks ?? flags.latentGroups,
      weights: 'f32',
      cacheType: 'f32',
      // The cache of the cluster is not used: windows are taken through the layers one after another.
      context: 16,
    },
    context,
  );
  const { checkpoint } = model;
  const { attention, numHeads, hiddenDim, numLayers } = checkpoint.config;
  if (attention.kind !== 'mla')
    throw new ConfigError(
      `${flags.model}: has a key-value cache per head and no latent; convert it first (tpla convert)`,
    );
  const counts = { length, calibration: Math.floor(calibrationTokens / length), heldOut: 0 };
  const { windows } = await readWindows(calibration, counts, await openText(checkpoint.path));
  const { nopeDim, valueDim, latentDim } = attention;
  const { latentGroups } = flags;
  const shape: FitShape = { numHeads, nopeDim, valueDim, latentDim, latentGroups, hiddenDim };
  await mkdir(flags.out, { recursive: true });
  const started = performance.now();
  await using cluster = await startCluster(model, context);
  await cluster.calibration.begin(windows, false, without);
  const layers: LayerFit[] = [];
  {
    using progress = startProgress('fit', numLayers, { name: 'layers', size: 1 });
    for (let layer = 0; layer < numLayers; layer++) {
      layers.push(splitFit(Float32Array.from(await cluster.calibration.statistics(layer)), shape));
      progress.update(layer + 1);
    }
  }
  const { exactTokens } = cluster.plan;
  const path = join(flags.out, fitFileName(latentGroups, exactTokens, flags.overlap));
  const calibrationHash = createHash('sha256').update(Int32Array.from(windows.flat())).digest('hex');
  const origin = {
    modelIdentity: checkpoint.identity,
    latentGroups,
    ...exactTokens,
    overlap: flags.overlap,
    reparameterization: flags.reparam,
    calibrationHash,
    without: without.join(' '),
  };
  await writeFit(path, origin, shape, layers);
  const report = {
    out: path,
    ...origin,
    tokens: windows.length * length,
    seconds: (performance.now() - started) / 1000,
  };
  // A model that keeps tokens of its own refuses others.
  const windowFlags =
    nearTokens(checkpoint.config) === undefined ? ` --window ${exactTokens.window} --sinks ${exactTokens.sinks}` : '';
  context.write(
    flags.json
      ? `${JSON.stringify(report)}\n`
      : `${path}: ${numLayers} layers fitted on ${report.tokens} tokens in ${report.seconds.toFixed(0)} s; use it with --corrections ${flags.out} --latent-groups ${latentGroups}${windowFlags}${flags.overlap > 0 ? ` --overlap ${flags.overlap}` : ''}\n`,
  );
}
