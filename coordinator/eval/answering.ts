/** Greedy answers to given prompts, for the tests of retrieval: what `tpla run --temperature 0` would write. */
import type { Cluster } from '../cluster.ts';
import { generate } from '../engine.ts';
import type { ModelText } from '../text.ts';

/** Nothing is drawn, nothing is held back. */
const greedy = { temperature: 0, topK: 0, topP: 1, minP: 0, repeatPenalty: 1 };

export async function answer(
  cluster: Cluster,
  text: ModelText,
  promptIds: readonly number[],
  maxTokens: number,
  signal: AbortSignal | undefined,
): Promise<string> {
  let written = '';
  const events = generate(cluster, {
    promptIds,
    sampling: greedy,
    seed: 0,
    maxTokens,
    stop: [],
    endIds: text.endIds,
    text: text.newStream(),
    signal,
  });
  for await (const event of events) written += event.text;
  return written;
}
