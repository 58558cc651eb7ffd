/**
 * How do we compare with llama.cpp on this machine? Alternates runs of ours (ranks in one process, so that their CPU time
 * can be told) and of llama.cpp, each in a fresh process, and prints the least CPU time and the median time of the clock.
 * On a busy machine only CPU time means anything. node-llama-cpp must be installed in a folder of its own:
 *   node dist/scripts/bench/compare-llama.js --model FILE.gguf --peer FOLDER --contexts 32,512 --rounds 3
 */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { startLocalRanks } from '../../test/helpers/local-ranks.ts';

const timing = z.object({ cpuMs: z.number(), wallMs: z.number() });
const measurement = z.object({ prefills: z.array(timing), decodes: z.array(timing) });
type Measurement = z.infer<typeof measurement>;

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      model: { type: 'string', default: '' },
      peer: { type: 'string', default: '' },
      contexts: { type: 'string', default: '32,512' },
      ranks: { type: 'string', default: '1' },
      threads: { type: 'string', default: '1' },
      steps: { type: 'string', default: '40' },
      rounds: { type: 'string', default: '3' },
      ours: { type: 'boolean', default: false },
    },
  });
  if (flags.model === '') throw new Error('--model: expected a GGUF file');
  const steps = Number(flags.steps);
  if (flags.ours) {
    const result = await measureOurs(flags.model, Number(flags.contexts), Number(flags.ranks), steps);
    console.log(JSON.stringify(result));
    return;
  }
  for (const context of flags.contexts.split(',')) {
    const ours: Measurement[] = [];
    const theirs: Measurement[] = [];
    for (let round = 0; round < Number(flags.rounds); round++) {
      const self = [fileURLToPath(import.meta.url), '--ours', '--model', flags.model, '--contexts', context];
      ours.push(run([...self, '--ranks', flags.ranks, '--steps', flags.steps]));
      if (flags.peer !== '')
        theirs.push(run([peerScript(), flags.peer, flags.model, context, flags.steps, flags.threads]));
    }
    report(`ours, ${flags.ranks} ranks in one process`, Number(context), ours);
    if (theirs.length > 0) report(`llama.cpp, ${flags.threads} threads`, Number(context), theirs);
  }
}

/** Not compiled: it lies among the sources. */
function peerScript(): string {
  const here = fileURLToPath(new URL('./llama-peer.mjs', import.meta.url));
  return here.replace(/([\\/])dist([\\/])scripts([\\/])/, '$1scripts$3');
}

function run(args: readonly string[]): Measurement {
  const out = execFileSync(process.execPath, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
  return measurement.parse(JSON.parse(out.trim().split('\n').at(-1) ?? ''));
}

async function measureOurs(model: string, context: number, ranks: number, steps: number): Promise<Measurement> {
  await using cluster = await startLocalRanks(model, ranks, {
    backend: 'ggml',
    weights: 'keep',
    cacheType: 'f16',
    contextTokens: context + 2 * steps,
    maxStepTokens: context,
  });
  const tokens = Array.from({ length: context }, (_, i) => (i % 400) + 300);
  const step = async (phase: 'prefill' | 'decode', start: number, ids: number[]): Promise<z.infer<typeof timing>> => {
    const [wall, cpu] = [performance.now(), process.cpuUsage()];
    await cluster.step({ phase, sequences: [{ slot: 0, start, tokens: ids }], want: { kind: 'last' } });
    const { user, system } = process.cpuUsage(cpu);
    return { cpuMs: (user + system) / 1000, wallMs: performance.now() - wall };
  };
  const prefills: z.infer<typeof timing>[] = [];
  for (let i = 0; i < 3; i++) prefills.push(await step('prefill', 0, tokens));
  const decodes: z.infer<typeof timing>[] = [];
  for (let i = 0; i < steps; i++) decodes.push(await step('decode', context + i, [100 + i]));
  return { prefills, decodes };
}

function report(who: string, context: number, runs: readonly Measurement[]): void {
  const prefills = runs.flatMap((r) => r.prefills);
  const decodes = runs.flatMap((r) => r.decodes);
  const least = (all: readonly { cpuMs: number }[]): number => Math.min(...all.map(({ cpuMs }) => cpuMs));
  const median = (all: readonly { cpuMs: number }[]): number =>
    all.map(({ cpuMs }) => cpuMs).sort((a, b) => a - b)[all.length >> 1] ?? NaN;
  const clock = (all: readonly { wallMs: number }[]): number =>
    all.map(({ wallMs }) => wallMs).sort((a, b) => a - b)[all.length >> 1] ?? NaN;
  const prefill = least(prefills);
  console.log(
    `${who.padEnd(32)} context ${context}: prefill ${((1000 * context) / prefill).toFixed(0)} tokens per CPU second, ` +
      `decode CPU min ${least(decodes).toFixed(2)} median ${median(decodes).toFixed(2)} ms, clock ${clock(decodes).toFixed(2)} ms`,
  );
  const result = { bench: 'compare-llama', who, context, prefillCpuMs: prefill, prefillClockMs: clock(prefills) };
  console.log(JSON.stringify({ ...result, decodeCpuMs: least(decodes), decodeClockMs: clock(decodes) }));
}

await main();
