/** What this machine is called among the ranks: ranks with one host name are taken to be able to share memory. */
import { hostname } from 'node:os';
import { ConfigError } from './errors.ts';

/** Of greetings. */
const maxLength = 255;

/** TPLA_HOST where it is set: machines of one name, containers of one machine that share its memory. @throws ConfigError */
export function hostName(env: NodeJS.ProcessEnv = process.env): string {
  const name = env['TPLA_HOST'] ?? hostname();
  if (name !== '' && name.length <= maxLength) return name;
  throw new ConfigError(`TPLA_HOST: expected 1 to ${maxLength} characters, got ${name.length}`);
}
