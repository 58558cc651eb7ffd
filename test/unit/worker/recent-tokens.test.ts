/** Which tokens are scored exactly, against a model of the ring that remembers what was written where. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { chunksOf } from '../../../worker/chunks.ts';
import { createReferenceKernels } from '../../../worker/kernels/reference.ts';
import { exactMask, restMask, RecentTokens } from '../../../worker/schemes/recent-tokens.ts';

const layout = { rowsPerSlot: 1024, readStep: 256, deal: { part: 0, parts: 1, block: 1 }, spareRow: 2048 };

/** Steps of one slot: each goes on from the end, or from some earlier position. */
const history = fc.array(
  fc.record({ back: fc.constantFrom(0, 0, 0, 1, 5, 40), length: fc.integer({ min: 1, max: 40 }) }),
  {
    minLength: 1,
    maxLength: 12,
  },
);

describe('the rows and masks of exact tokens', () => {
  test('every visible position is seen once, and rows of the ring only while they hold it', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 6 }),
        fc.integer({ min: 0, max: 20 }),
        fc.constantFrom(0, 0, 9),
        history,
        (sinks, window, sliding, steps) => {
          if (sinks + window === 0) return;
          using kernels = createReferenceKernels();
          const recent = new RecentTokens(kernels, { sinks, window }, 1, 2, 4);
          const held = new Map<number, string>(); // row -> position and the step that wrote it
          const writer: number[] = []; // step that wrote each position last
          let end = 0;
          steps.forEach(({ back, length }, step) => {
            const start = Math.max(0, end - back);
            const sequence = { slot: 1, start, tokens: new Array<number>(length).fill(0) };
            recent.begin([sequence]);
            const [chunk] = chunksOf(
              { kind: 'step', id: 0, phase: 'decode', sequences: [sequence], want: { kind: 'none' } },
              layout,
            );
            const segment = chunk!.segments[0]!;
            const exact = exactMask(segment, recent.sizes, recent.validFrom(1), sliding);
            const rest = restMask(segment, recent.sizes, layout.deal, recent.validFrom(1), sliding);
            const width = recent.rowsPerSlot + length;
            for (let t = 0; t < length; t++) {
              const position = start + t;
              const seen: number[] = [];
              for (let column = 0; column < width; column++) {
                if (exact[t * width + column] !== 0) continue;
                if (column >= recent.rowsPerSlot) {
                  seen.push(start + column - recent.rowsPerSlot);
                  continue;
                }
                const [holder, by] = held
                  .get(recent.rowsPerSlot + column)!
                  .split(' ')
                  .map(Number);
                expect(by).toBe(writer[holder!]);
                seen.push(holder!);
              }
              for (const other of seen) expect(other < sinks || other > position - window).toBe(true);
              for (let other = 0; other < segment.paddedRows; other++)
                if (rest[t * segment.paddedRows + other] === 0) seen.push(other);
              const first = sliding === 0 ? 0 : Math.max(0, position - sliding + 1);
              const visible = Array.from({ length: position - first + 1 }, (_, i) => first + i);
              expect(seen.toSorted((a, b) => a - b)).toEqual(visible);
            }
            recent.rowsOf(chunk!).forEach((row, i) => {
              writer[start + i] = step;
              if (row < 2 * recent.rowsPerSlot) held.set(row, `${start + i} ${step}`);
            });
            end = start + length;
          });
        },
      ),
      { seed: 7, numRuns: 200 },
    );
  });
});
