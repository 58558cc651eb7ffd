/**
 * Walks MessagePack bytes before they are decoded and refuses everything that our messages never contain: extensions,
 * binary, non-string keys, deep nesting, and counts that exceed the bytes present. The decoder would otherwise turn
 * extensions into code (`new Function` for records), regular expressions and errors, and reserve arrays of any
 * announced length. Read next: frame.ts.
 */

const maxDepth = 16;

/** The reason why `bytes` is not one plain MessagePack value (nil, bool, number, string, array, map of strings), or null. */
export function refusalOfMsgpack(bytes: Uint8Array): string | null {
  try {
    const cursor = { bytes, view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), at: 0 };
    skipValue(cursor, 0);
    return cursor.at === bytes.length ? null : `${bytes.length - cursor.at} bytes after the message`;
  } catch (error) {
    if (error instanceof RangeError) return 'cut off';
    if (error instanceof NotPlain) return error.message;
    throw error;
  }
}

interface Cursor {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  at: number;
}

class NotPlain extends Error {}

/** Throws RangeError (from DataView) past the end. */
function skipValue(cursor: Cursor, depth: number): void {
  if (depth > maxDepth) throw new NotPlain(`nested deeper than ${maxDepth}`);
  const token = cursor.view.getUint8(cursor.at++);
  if (token < 0x80 || token >= 0xe0) return;
  if (token < 0x90) return skipMap(cursor, token & 0x0f, depth);
  if (token < 0xa0) return skipArray(cursor, token & 0x0f, depth);
  if (token < 0xc0) return skipBytes(cursor, token & 0x1f);
  switch (token) {
    case 0xc0: // nil, false, true
    case 0xc2:
    case 0xc3:
      return;
    case 0xca: // float 32, 64
      return skipBytes(cursor, 4);
    case 0xcb:
      return skipBytes(cursor, 8);
    case 0xcc: // unsigned and signed integers of 1, 2, 4, 8 bytes
    case 0xd0:
      return skipBytes(cursor, 1);
    case 0xcd:
    case 0xd1:
      return skipBytes(cursor, 2);
    case 0xce:
    case 0xd2:
      return skipBytes(cursor, 4);
    case 0xcf:
    case 0xd3:
      return skipBytes(cursor, 8);
    case 0xd9: // strings
    case 0xda:
    case 0xdb:
      return skipBytes(cursor, readCount(cursor, token - 0xd9));
    case 0xdc:
    case 0xdd:
      return skipArray(cursor, readCount(cursor, token - 0xdb), depth);
    case 0xde:
    case 0xdf:
      return skipMap(cursor, readCount(cursor, token - 0xdd), depth);
    default:
      throw new NotPlain(`MessagePack token 0x${token.toString(16)} (binary, extension or reserved)`);
  }
}

/** A count of 1, 2 or 4 bytes: width 0, 1, 2. */
function readCount(cursor: Cursor, width: number): number {
  const at = cursor.at;
  cursor.at += 1 << width;
  if (width === 0) return cursor.view.getUint8(at);
  return width === 1 ? cursor.view.getUint16(at) : cursor.view.getUint32(at);
}

function skipBytes(cursor: Cursor, count: number): void {
  if (count > cursor.bytes.length - cursor.at) throw new RangeError('past the end');
  cursor.at += count;
}

function skipArray(cursor: Cursor, count: number, depth: number): void {
  if (count > cursor.bytes.length - cursor.at) throw new RangeError('past the end');
  for (let i = 0; i < count; i++) skipValue(cursor, depth + 1);
}

function skipMap(cursor: Cursor, count: number, depth: number): void {
  if (2 * count > cursor.bytes.length - cursor.at) throw new RangeError('past the end');
  for (let i = 0; i < count; i++) {
    const key = cursor.view.getUint8(cursor.at);
    const isString = (key >= 0xa0 && key < 0xc0) || (key >= 0xd9 && key <= 0xdb);
    if (!isString) throw new NotPlain('a key that is no string');
    skipValue(cursor, depth + 1);
    skipValue(cursor, depth + 1);
  }
}
