/** The package as a program imports it: start, generate, stop, and what its types say. */
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { ConfigError, startCluster, type GenerationEvent } from '../../coordinator/library.ts';
import { goldenFolder } from '../helpers/golden.ts';
import { rankProcesses } from '../helpers/program.ts';

const model = join(goldenFolder, 'stories260K');

describe('startCluster', () => {
  test('generates several texts at once and leaves no process', async () => {
    const cluster = await startCluster({ model, ranks: 2, context: 256, slots: 2 });
    expect(cluster).toMatchObject({ scheme: 'gqa', contextTokens: 256 });
    const pids = cluster.ranks.map(({ pid }) => pid);
    const textOf = async (events: AsyncIterable<GenerationEvent>): Promise<string> => {
      let text = '';
      for await (const event of events) text += event.text;
      return text;
    };
    const prompts = ['Once upon a time', 'The dog', 'Tom'];
    const texts = await Promise.all(
      prompts.map((prompt) => textOf(cluster.generate({ prompt, maxTokens: 12, temperature: 1, seed: 5 }))),
    );
    const again = await textOf(cluster.generate({ prompt: 'The dog', maxTokens: 12, temperature: 1, seed: 5 }));
    expect(again).toBe(texts[1]);
    expect(new Set(texts).size).toBe(3);
    expect(() => cluster.generate({ prompt: [{ role: 'user', content: 'Hi' }] })).toThrow(ConfigError);
    await cluster.stop();
    await cluster.stop();
    const left = [...rankProcesses('').values()].filter((pid) => pids.includes(pid));
    expect(left).toEqual([]);
    expect(() => cluster.generate({ prompt: 'Once' })).toThrow('the scheduler was stopped');
  });

  test('refuses what cannot be, leaving nothing behind', async () => {
    await expect(startCluster({ model, ranks: 0 })).rejects.toThrow('expected a whole number from 1');
    await expect(startCluster({ model: join(model, 'nothing') })).rejects.toBeInstanceOf(ConfigError);
  });

  test('is what the package exports', async () => {
    // Not a literal: type checking must not need the build.
    const name: string = 'tpla';
    const exported: Record<string, unknown> = await import(name);
    expect(Object.keys(exported).sort()).toEqual(['ConfigError', 'InvariantError', 'PeerError', 'startCluster']);
  });
});
