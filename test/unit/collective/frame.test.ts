import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  decodeCollective,
  decodeMessage,
  encodeCollective,
  encodeLent,
  encodeMessage,
  FrameError,
  headerBytes,
  maxMessageBytes,
} from '../../../collective/frame.ts';
import { carried } from '../../../collective/payload.ts';
import type { CollectiveHeader } from '../../../collective/frame.ts';

const anyBytes = fc.uint8Array({ maxLength: 80 }).map((bytes) => Buffer.from(bytes));
const emptyMap = Buffer.from([0x80]);

const header: CollectiveHeader = {
  operation: 'all-gather',
  groupTag: 0xdead_beef,
  epoch: 4_000_000_000,
  sequence: 518,
  source: 63,
  step: 125,
  total: 2304,
  offset: 1_048_576,
};

describe('control messages', () => {
  it('come back as they were, for anything that JSON can say', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string(), fc.jsonValue({ maxDepth: 4 })), (message) => {
        const clean = JSON.parse(JSON.stringify(message).replaceAll('__proto__', 'proto').replaceAll(':-0', ':0'));
        expect(decodeMessage(encodeMessage(clean)).message).toEqual(clean);
      }),
    );
  });

  it('carry a payload that is copied when sent and aligned when received', () => {
    const payload = Float32Array.of(1.5, -0, NaN, Infinity, 1e-40);
    const [packed, raw] = encodeMessage({ kind: 'x' }, payload);
    payload.fill(7);
    for (const shift of [0, 1, 2, 3]) {
      const moved = Buffer.alloc(raw!.length + shift);
      raw!.copy(moved, shift);
      const decoded = decodeMessage([packed!, moved.subarray(shift)]);
      expect(decoded.payload).toEqual(Float32Array.of(1.5, -0, NaN, Infinity, 1e-40));
    }
  });

  it('carry a lent payload, part of a larger array, without a copy', () => {
    const whole = Float32Array.of(8, 1.5, -0, NaN, 9);
    const frames = encodeLent({ kind: 'x' }, whole.subarray(1, 4));
    expect(frames[1]!.buffer).toBe(whole.buffer);
    expect(decodeMessage(frames)).toEqual({ message: { kind: 'x' }, payload: Float32Array.of(1.5, -0, NaN) });
  });

  const refused: [string, Buffer[], string][] = [
    ['no frame', [], '0 frames, expected 1 or 2'],
    ['three frames', [emptyMap, Buffer.alloc(4), Buffer.alloc(4)], '3 frames, expected 1 or 2'],
    ['half a float', [emptyMap, Buffer.alloc(6)], 'payload of 6 B is not a whole number of float32'],
    ['nothing', [Buffer.alloc(0)], 'cut off'],
    ['too long', [Buffer.alloc(maxMessageBytes + 1)], `${maxMessageBytes + 1} B, limit ${maxMessageBytes} B`],
    ['more than one value', [Buffer.from([1, 2])], '1 bytes after the message'],
    ['an array of four billion', [Buffer.from([0xdd, 0xff, 0xff, 0xff, 0xff])], 'cut off'],
    ['a map of four billion', [Buffer.from([0xdf, 0xff, 0xff, 0xff, 0xff])], 'cut off'],
    ['a record', [Buffer.from([0xd4, 0x72, 0x40, 0x91, 0xa1, 0x61, 0x01])], 'token 0xd4'],
    ['a regular expression', [Buffer.from([0xc7, 0x00, 0x78, 0x92, 0xa1, 0x61, 0xa0])], 'token 0xc7'],
    ['a date', [Buffer.from([0xd6, 0xff, 0, 0, 0, 0])], 'token 0xd6'],
    ['bytes', [Buffer.from([0x81, 0xa1, 0x61, 0xc4, 0x01, 0x00])], 'token 0xc4'],
    ['a number as key', [Buffer.from([0x81, 0x01, 0x01])], 'a key that is no string'],
    ['deep nesting', [Buffer.alloc(50, 0x91)], 'nested deeper than 16'],
  ];
  it.each(refused)('refuses %s', (_, frames, text) => {
    expect(() => decodeMessage(frames)).toThrow(FrameError);
    expect(() => decodeMessage(frames)).toThrow(text);
  });

  it('survives any bytes', () => {
    fc.assert(fc.property(fc.array(anyBytes, { maxLength: 3 }), survives(decodeMessage)));
  });

  it('survives damage to a real message', () => {
    const [packed] = encodeMessage({
      kind: 'step',
      id: 7,
      sequences: [{ slot: 0, start: 0, tokens: [1, 300, 70_000] }],
    });
    fc.assert(
      fc.property(fc.nat(packed!.length - 1), fc.nat(255), (at, value) => {
        const damaged = Buffer.from(packed!);
        damaged[at] = value;
        survives(decodeMessage)([damaged]);
      }),
    );
  });
});

describe('collective frames', () => {
  it('come back as they were, at any alignment', () => {
    const data = Float32Array.from({ length: 37 }, (_, i) => Math.sin(i));
    const frame = encodeCollective(header, data);
    expect(frame.length).toBe(headerBytes + 4 * 37);
    for (const shift of [0, 1, 2, 3]) {
      const moved = Buffer.alloc(frame.length + shift);
      frame.copy(moved, shift);
      expect(decodeCollective(moved.subarray(shift))).toEqual({ header, data, bytes: 4 * 37 });
    }
  });

  it('carry halves and blocks', () => {
    const data = Float32Array.from({ length: 37 }, (_, i) => Math.sin(i));
    for (const [payload, size] of [
      ['f16', 74],
      ['q8_0', 41],
    ] as const) {
      const expected = data.slice();
      carried(expected, payload);
      const frame = encodeCollective(header, data, payload);
      expect(decodeCollective(frame)).toEqual({ header, data: expected, bytes: size });
    }
  });

  it('copy the data', () => {
    const data = Float32Array.of(1, 2, 3);
    const frame = encodeCollective(header, data);
    data.fill(9);
    expect([...decodeCollective(frame).data]).toEqual([1, 2, 3]);
  });

  const damage: [string, (frame: Buffer) => Buffer, string][] = [
    ['a short frame', (frame) => frame.subarray(0, 35), '35 B, a header has 36'],
    ['foreign bytes', (frame) => frame.fill(0, 0, 4), 'not a tpla frame'],
    ['another protocol', (frame) => frame.fill(99, 4, 5), 'protocol 99, expected'],
    ['an unknown operation', (frame) => frame.fill(77, 6, 7), 'unknown operation 77'],
    ['an unknown element type', (frame) => frame.fill(4, 7, 8), 'unknown element type 4'],
    ['a flipped bit of the data', (frame) => frame.fill(1, 36, 37), 'says it is from rank 63 is wrong'],
    ['another sequence number', (frame) => frame.fill(255, 16, 17), 'says it is from rank 63 is wrong'],
    ['half a float', (frame) => frame.subarray(0, 38), 'payload of 2 B is not a whole number of f32'],
    [
      'a block without numbers',
      (frame) => frame.fill(3, 7, 8).subarray(0, 38),
      'payload of 2 B is not a whole number of q8_0',
    ],
  ];
  it.each(damage)('refuse %s', (_, harm, text) => {
    const frame = harm(encodeCollective(header, Float32Array.of(1)));
    expect(() => decodeCollective(frame)).toThrow(FrameError);
    expect(() => decodeCollective(frame)).toThrow(text);
  });

  it('survive any bytes', () => {
    fc.assert(fc.property(anyBytes, survives(decodeCollective)));
  });
});

/** Either a result or a FrameError. */
function survives<T>(decode: (input: T) => unknown): (input: T) => void {
  return (input) => {
    try {
      decode(input);
    } catch (error) {
      if (!(error instanceof FrameError)) throw error;
    }
  };
}
