/**
 * Splits a protobuf message into its fields, without a schema: what a SentencePiece model needs. Every length is
 * checked against the message before it is used. Groups (long deprecated) are refused.
 */
import { ConfigError } from '../config/errors.ts';

export interface ProtobufField {
  readonly number: number;
  /** Wire type 0; -1 is the largest 64-bit number, as protobuf writes negative values. */
  readonly varint?: number;
  /** Wire type 5. */
  readonly float?: number;
  /** Wire type 2: text, bytes or a message. */
  readonly bytes?: Uint8Array;
}

/** @throws ConfigError when the bytes are not a protobuf message */
export function fieldsOf(message: Uint8Array, where: string): ProtobufField[] {
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
  const fields: ProtobufField[] = [];
  let at = 0;
  const requireBytes = (count: number): void => {
    if (count > message.length - at)
      throw new ConfigError(`${where}: a field ends behind its message; the file is damaged`);
  };
  const varint = (): number => {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      requireBytes(1);
      const byte = view.getUint8(at++);
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return Number(BigInt.asIntN(64, value));
    }
    throw new ConfigError(`${where}: a number longer than 64 bits; the file is damaged`);
  };
  while (at < message.length) {
    const tag = varint();
    const number = Math.floor(tag / 8);
    switch (tag % 8) {
      case 0:
        fields.push({ number, varint: varint() });
        break;
      case 1:
        requireBytes(8);
        at += 8;
        break;
      case 2: {
        const length = varint();
        if (length < 0) throw new ConfigError(`${where}: a field of negative length; the file is damaged`);
        requireBytes(length);
        fields.push({ number, bytes: message.subarray(at, at + length) });
        at += length;
        break;
      }
      case 5:
        requireBytes(4);
        fields.push({ number, float: view.getFloat32(at, true) });
        at += 4;
        break;
      default:
        throw new ConfigError(`${where}: not a protobuf message (wire type ${tag % 8})`);
    }
  }
  return fields;
}
