/**
 * The command line of the rank program, which only our own code writes: `tpla serve` and its like for a rank of this
 * machine, `tpla worker` for one that offers itself. Read next: main.ts.
 */
import { parseArgs } from 'node:util';
import { ConfigError, InvariantError } from '../config/errors.ts';
import { findMachineKeys, parseMachineKeys, type MachineKeys } from '../collective/key-files.ts';

export interface Settings {
  /** Control endpoint of the coordinator. */
  readonly connect: string;
  /** Offers: the rank that is wished for; null: any. */
  readonly rank: number | null;
  readonly token: string;
  /** Key file or its folder. */
  readonly keys: string | undefined;
  /** Keys themselves, from the environment, where they came over a secure channel. */
  readonly keyText: string | undefined;
  /** Whether this process asks for a rank instead of having one. */
  readonly isOffer: boolean;
  /** Offers: path of this machine's copy of the model. */
  readonly model: string | undefined;
  /** Offers: how many ranks the launcher says there are; null: it does not say. */
  readonly worldSize: number | null;
}

export function settingsOf(args: readonly string[], env: NodeJS.ProcessEnv): Settings {
  const text = { type: 'string' } as const;
  const { values } = parseArgs({
    args: [...args],
    options: {
      connect: text,
      rank: text,
      token: text,
      keys: text,
      offer: { type: 'boolean' },
      model: text,
      'world-size': text,
    },
  });
  const isOffer = values.offer === true;
  const rank = wholeNumber(values.rank);
  const { connect, token = '', model } = values;
  if (connect === undefined || (isOffer ? model === undefined : rank === null))
    throw new InvariantError('worker: expected --connect ENDPOINT, and --rank I or --offer --model PATH');
  const worldSize = wholeNumber(values['world-size']);
  return { connect, rank, token, keys: values.keys, keyText: env['TPLA_KEYS'], isOffer, model, worldSize };
}

/** undefined: none are asked for. @throws ConfigError when they cannot be had */
export async function keysOf({ keys: path, keyText }: Settings): Promise<MachineKeys | undefined> {
  if (keyText !== undefined) return parseMachineKeys(keyText, 'of the coordinator');
  if (path === undefined) return undefined;
  const found = await findMachineKeys(path);
  if (found === null) throw new ConfigError(`keys: ${path} is not there any more`);
  return found.keys;
}

function wholeNumber(text: string | undefined): number | null {
  if (text === undefined) return null;
  const number = Number(text);
  if (Number.isInteger(number) && number >= 0) return number;
  throw new InvariantError(`worker: expected a whole number, got ${JSON.stringify(text)}`);
}
