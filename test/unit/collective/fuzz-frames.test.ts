/** A short run of scripts/faults/fuzz-frames.ts; the long one stands in docs/log.md. */
import { expect, test } from 'vitest';
import { decodeMessage, encodeMessage } from '../../../collective/frame.ts';
import { toCoordinatorSchema, toRankSchema } from '../../../collective/messages.ts';
import { fuzzFrames } from '../../../scripts/faults/fuzz-frames.ts';
import { sampleMessages } from '../../../scripts/faults/mutate.ts';

test('mutated frames are accepted or refused, and nothing else', () => {
  const { frames, accepted, refused, crashes } = fuzzFrames(20_000, 3);
  expect(crashes).toEqual([]);
  expect(accepted + refused).toBe(frames);
  // Neither all noise nor all whole: both paths are taken.
  expect(accepted).toBeGreaterThan(frames / 20);
  expect(refused).toBeGreaterThan(frames / 2);
  expect({}).not.toHaveProperty('polluted');
});

test('the frames begin as whole messages, of every kind', () => {
  const kinds = new Set<string>();
  for (const message of sampleMessages()) {
    const arrived = decodeMessage(encodeMessage(message)).message;
    const schema = toRankSchema.safeParse(arrived).success ? toRankSchema : toCoordinatorSchema;
    expect(schema.parse(arrived)).toEqual(message);
    kinds.add(message.kind);
  }
  const known = [...toRankSchema.options, ...toCoordinatorSchema.options].flatMap((each) =>
    'shape' in each ? [...each.shape.kind.values] : ['calibration'],
  );
  for (const kind of known) expect(kinds).toContain(kind);
});
