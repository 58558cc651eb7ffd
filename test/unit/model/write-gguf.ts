/** Writes small GGUF files for tests, from values and types written out; nothing is checked, so that files may be wrong. */
import { writeFile } from 'node:fs/promises';

export type Value =
  | { u32: number }
  | { f32: number }
  | { bool: boolean }
  | { string: string }
  | { strings: readonly string[] }
  | { i32s: readonly number[] }
  | { f32s: readonly number[] };

export interface TestTensor {
  readonly name: string;
  /** Innermost first, as the file has it. */
  readonly ne: readonly number[];
  readonly typeNumber: number;
  readonly bytes: Uint8Array;
}

export async function writeGguf(
  path: string,
  metadata: Record<string, Value>,
  tensors: readonly TestTensor[],
): Promise<void> {
  const parts: Uint8Array[] = [];
  const u32 = (value: number): void => void parts.push(bytesOf(4, (view) => view.setUint32(0, value, true)));
  const u64 = (value: number): void => void parts.push(bytesOf(8, (view) => view.setBigUint64(0, BigInt(value), true)));
  const f32 = (value: number): void => void parts.push(bytesOf(4, (view) => view.setFloat32(0, value, true)));
  const string = (text: string): void => {
    const bytes = new TextEncoder().encode(text);
    u64(bytes.length);
    parts.push(bytes);
  };
  const list = <T>(type: number, values: readonly T[], write: (value: T) => void): void => {
    u32(9);
    u32(type);
    u64(values.length);
    values.forEach(write);
  };
  const typed = (type: number, write: () => void): void => {
    u32(type);
    write();
  };
  u32(0x46554747);
  u32(3);
  u64(tensors.length);
  u64(Object.keys(metadata).length);
  for (const [key, value] of Object.entries(metadata)) {
    string(key);
    if ('u32' in value) typed(4, () => u32(value.u32));
    else if ('f32' in value) typed(6, () => f32(value.f32));
    else if ('bool' in value) typed(7, () => void parts.push(Uint8Array.of(value.bool ? 1 : 0)));
    else if ('string' in value) typed(8, () => string(value.string));
    else if ('strings' in value) list(8, value.strings, string);
    else if ('i32s' in value) list(5, value.i32s, u32);
    else list(6, value.f32s, f32);
  }
  let offset = 0;
  for (const { name, ne, typeNumber, bytes } of tensors) {
    string(name);
    u32(ne.length);
    ne.forEach(u64);
    u32(typeNumber);
    u64(offset);
    offset += align(bytes.length);
  }
  const header = Buffer.concat(parts);
  const data = tensors.flatMap(({ bytes }) => [bytes, new Uint8Array(align(bytes.length) - bytes.length)]);
  await writeFile(path, Buffer.concat([header, new Uint8Array(align(header.length) - header.length), ...data]));
}

function align(length: number): number {
  return Math.ceil(length / 32) * 32;
}

function bytesOf(length: number, set: (view: DataView) => void): Uint8Array {
  const bytes = new Uint8Array(length);
  set(new DataView(bytes.buffer));
  return bytes;
}
