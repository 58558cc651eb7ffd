/**
 * Do damaged and hostile frames end as a refusal, every one, and cost no memory? Decodes mutated control messages and
 * collective frames as ranks and coordinator do, in this process. Build first, then:
 *   node --expose-gc dist/scripts/faults/fuzz-frames.js --count 1000000 --seed 1
 * Prints one JSON line; exit code 1 when a frame was neither accepted nor refused, or memory grew by 50 MB.
 * Read next: mutate.ts (the frames), connections.ts (the same at a cluster's ports).
 */
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { decodeCollective, FrameError, parseMessage } from '../../collective/frame.ts';
import { toCoordinatorSchema, toRankSchema } from '../../collective/messages.ts';
import { seededRandom } from '../../coordinator/sampler.ts';
import { mutatedCollective, mutatedMessage, sampleMessages } from './mutate.ts';

export interface FuzzResult {
  readonly frames: number;
  readonly accepted: number;
  readonly refused: number;
  /** What was thrown instead of a FrameError; the first few. */
  readonly crashes: readonly string[];
}

const keptCrashes = 5;

export function fuzzFrames(count: number, seed: number): FuzzResult {
  const random = seededRandom(seed);
  const messages = sampleMessages();
  const crashes: string[] = [];
  let [accepted, refused] = [0, 0];
  for (let i = 0; i < count; i++) {
    // Drawn before it is decoded: an error of ours is no finding.
    const decode = drawn(messages, random);
    try {
      decode();
      accepted++;
    } catch (error) {
      if (error instanceof FrameError) refused++;
      else if (crashes.length < keptCrashes) crashes.push(`frame ${i}: ${String(error)}`);
    }
  }
  return { frames: count, accepted, refused, crashes };
}

function drawn(messages: readonly object[], random: () => number): () => unknown {
  const choice = random();
  if (choice < 0.3) {
    const frame = mutatedCollective(random);
    return () => decodeCollective(frame);
  }
  const frames = mutatedMessage(messages, random);
  return choice < 0.65 ? () => parseMessage(frames, toRankSchema) : () => parseMessage(frames, toCoordinatorSchema);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main();

function main(): void {
  const text = { type: 'string' } as const;
  const { values } = parseArgs({ options: { count: text, seed: text } });
  const count = Number(values.count ?? 1_000_000);
  const seed = Number(values.seed ?? 1);
  // Compiled code and caches of the first frames are not a leak.
  fuzzFrames(Math.min(count, 20_000), seed + 1);
  const before = bytesHeld();
  const startedAt = performance.now();
  const result = fuzzFrames(count, seed);
  const seconds = (performance.now() - startedAt) / 1000;
  const after = bytesHeld();
  const grownBytes = after.resident - before.resident;
  // What is still reachable; the rest is memory that V8 keeps for later.
  const grownLiveBytes = after.live - before.live;
  console.log(JSON.stringify({ ...result, seed, seconds, grownBytes, grownLiveBytes }));
  if (result.crashes.length > 0 || grownBytes > 50e6) process.exitCode = 1;
}

function bytesHeld(): { resident: number; live: number } {
  globalThis.gc?.();
  const { rss, heapUsed, external } = process.memoryUsage();
  return { resident: rss, live: heapUsed + external };
}
