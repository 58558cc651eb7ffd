/** Ranks that die, freeze or lose their coordinator: the cause is named, and neither process nor file is left. */
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ConfigError, PeerError } from '../../config/errors.ts';
import { loadClusterConfig, type ClusterFlags } from '../../config/load.ts';
import type { StepResult } from '../../coordinator/ask-ranks.ts';
import { Cluster, type ClusterOptions } from '../../coordinator/cluster.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { goldenFolder, tinyModel } from '../helpers/golden.ts';
import { rankProcesses, Sandbox, untilNoRanks } from '../helpers/program.ts';

const tinyLlama = tinyModel('llama-gqa');
const stories = join(goldenFolder, 'stories260K');

let sandbox: Sandbox;
let checkpoint: Checkpoint;
const temporaryBefore = process.env['TMPDIR'];
beforeEach(async () => {
  sandbox = new Sandbox();
  process.env['TMPDIR'] = sandbox.folder;
  checkpoint = await openCheckpoint(tinyLlama);
});
afterEach(async () => {
  if (temporaryBefore === undefined) delete process.env['TMPDIR'];
  else process.env['TMPDIR'] = temporaryBefore;
  await checkpoint[Symbol.asyncDispose]();
  sandbox[Symbol.dispose]();
});

async function optionsFor(flags: ClusterFlags, log: (line: string) => void = () => undefined): Promise<ClusterOptions> {
  return { checkpoint, config: await loadClusterConfig({ flags: { model: tinyLlama, ...flags } }), log };
}

function step(cluster: Cluster, tokens: number[]): Promise<StepResult> {
  return cluster.step({ phase: 'prefill', sequences: [{ slot: 0, start: 0, tokens }], want: { kind: 'last' } });
}

/** The error of a promise that must fail. */
async function failureOf(promise: Promise<unknown>): Promise<Error> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(Error);
  return error as Error;
}

function expectNothingLeft(): void {
  expect(rankProcesses(sandbox.folder).size).toBe(0);
  expect(sandbox.leftovers()).toEqual([]);
}

describe('a cluster', () => {
  test('says what each rank holds, and is gone after disposal', async () => {
    const lines: string[] = [];
    {
      await using cluster = await Cluster.start(await optionsFor({ ranks: 3 }, (line) => lines.push(line)));
      expect(lines).toEqual([
        'scheme gqa on 3 ranks: the model has a key-value cache per head; convert it for a latent one',
      ]);
      expect(cluster.ranks.map(({ rank }) => rank)).toEqual([0, 1, 2]);
      expect(new Map(cluster.ranks.map(({ rank, pid }) => [rank, pid]))).toEqual(rankProcesses(sandbox.folder));
      const { logits, perRank } = await step(cluster, [1, 2, 3]);
      expect(logits).toHaveLength(cluster.vocabSize);
      expect(perRank.every(({ computeMs, bytesSent }) => computeMs > 0 && bytesSent > 0)).toBe(true);
    }
    expectNothingLeft();
  });

  test('checks its sums', async () => {
    await using cluster = await Cluster.start(await optionsFor({ ranks: 2, transport: 'zeromq' }));
    const replies = await cluster.checks.collective(1000, 5);
    expect(replies.map((reply) => reply.latenciesUs.length)).toEqual([5, 5]);
  });

  test('refuses an impossible plan before anything is started', async () => {
    const error = await failureOf(optionsFor({ scheme: 'tpla' }).then((options) => Cluster.start(options)));
    expect(error).toBeInstanceOf(ConfigError);
    expectNothingLeft();
  });

  test('ends its waits when it is interrupted', async () => {
    const controller = new AbortController();
    const options = { ...(await optionsFor({ ranks: 2 })), signal: controller.signal };
    await using cluster = await Cluster.start(options);
    process.kill(cluster.ranks[1]!.pid, 'SIGSTOP');
    const stepping = step(cluster, [1]);
    controller.abort(new ConfigError('enough'));
    await expect(stepping).rejects.toThrow(new ConfigError('enough'));
    process.kill(cluster.ranks[1]!.pid, 'SIGCONT');
  });
});

describe('a rank that dies', () => {
  test('during a request ends it, and is named with its signal', async () => {
    const cluster = await Cluster.start(await optionsFor({ ranks: 3 }));
    const { pid } = cluster.ranks[1]!;
    // Stopped first, so that the request is certainly in flight when the process goes.
    process.kill(pid, 'SIGSTOP');
    const failing = failureOf(step(cluster, [1, 2, 3]));
    process.kill(pid, 'SIGKILL');
    const error = await failing;
    expect(error).toBeInstanceOf(PeerError);
    expect(error.message.split('\n')[0]).toBe(
      `rank 1 (process ${pid}) was killed by SIGKILL (out of memory?) during step 0; it printed nothing`,
    );
    expect(await failureOf(step(cluster, [1]))).toBe(error);
    await cluster[Symbol.asyncDispose]();
    expectNothingLeft();
  });

  test('before it has said hello ends the start', async () => {
    let killed: number | undefined;
    const options = await optionsFor({ ranks: 2 }, () => {
      killed = rankProcesses(sandbox.folder).get(1)!;
      process.kill(killed, 'SIGKILL');
    });
    const error = await failureOf(Cluster.start(options));
    expect(error).toBeInstanceOf(PeerError);
    expect(error.message.split('\n')[0]).toBe(
      `rank 1 (process ${killed}) was killed by SIGKILL (out of memory?) while starting; it printed nothing`,
    );
    expectNothingLeft();
  });

  test('between requests is named by the next one', async () => {
    await using cluster = await Cluster.start(await optionsFor({ ranks: 2 }));
    const { pid } = cluster.ranks[0]!;
    process.kill(pid, 'SIGTERM');
    const error = await failureOf(step(cluster, [1]));
    expect(error.message.split('\n')[0]).toMatch(new RegExp(`^rank 0 \\(process ${pid}\\) was ended by SIGTERM`));
  });
});

test('a rank that freezes is named by the rank that waits for it', async () => {
  const cluster = await Cluster.start(await optionsFor({ ranks: 2 }).then(withTimeout(300)));
  const { pid } = cluster.ranks[1]!;
  process.kill(pid, 'SIGSTOP');
  const error = await failureOf(step(cluster, [1, 2]));
  process.kill(pid, 'SIGCONT');
  expect(error).toBeInstanceOf(PeerError);
  expect(error.message).toMatch(/rank 0: nothing from rank 1/);
  await cluster[Symbol.asyncDispose]();
  expectNothingLeft();
});

describe('a coordinator that goes', () => {
  const long = ['run', '--raw', '--model', stories, '--max-tokens', '500', 'Once upon a time'];

  test.each(['SIGINT', 'SIGTERM'] as const)('by %s takes its ranks along', async (signal) => {
    const running = sandbox.start(long);
    await running.printed('girl');
    running.child.kill(signal);
    const { code, stderr } = await running.finished;
    expect(code).toBe(signal === 'SIGINT' ? 130 : 143);
    expect(stderr).toMatch(new RegExp(`${signal}: stopping; once more to stop at once\n$`));
    expectNothingLeft();
  });

  test('by SIGKILL leaves no rank and no file', async () => {
    const running = sandbox.start(long);
    await running.printed('girl');
    running.child.kill('SIGKILL');
    await running.finished;
    await untilNoRanks(sandbox.folder);
    expectNothingLeft();
  });
});

function withTimeout(timeoutMs: number) {
  return (options: ClusterOptions): ClusterOptions => ({
    ...options,
    config: { ...options.config, collective: { ...options.config.collective, timeoutMs } },
  });
}
