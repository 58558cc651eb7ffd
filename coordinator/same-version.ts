/** Ranks of another version than the coordinator's are refused by name: their messages or arithmetic may differ. */
import { ConfigError } from '../config/errors.ts';
import { packageVersion } from '../config/version.ts';
import type { Hello } from '../collective/greetings.ts';
import { protocolVersion } from '../collective/messages.ts';

/** @throws ConfigError naming rank, host and both versions */
export function requireSameVersion({ rank, host, version, protocol }: Hello): void {
  const theirs = `version ${version}, protocol ${protocol}`;
  const ours = `version ${packageVersion}, protocol ${protocolVersion}`;
  if (theirs === ours) return;
  throw new ConfigError(`rank ${rank} on ${host} is ${theirs}; expected ${ours}; build or install again`);
}
