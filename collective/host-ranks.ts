/** Which ranks are on one host. Words: a place is the number of a rank among those of its host, in rank order. */

export interface HostRanks {
  /** Ranks of each host, hosts in the order of their first ranks. [hosts][ranks of it] */
  readonly ranks: readonly (readonly number[])[];
  /** Index of each rank's host. [worldSize] */
  readonly hostOf: readonly number[];
}

/** All ranks of the rank's host, itself included, in rank order. @param hosts as below */
export function ranksBeside(rank: number, hosts: readonly string[]): number[] {
  return hosts.flatMap((host, other) => (host === hosts[rank] ? [other] : []));
}

/** @param hosts name of each rank's host. [worldSize] */
export function hostRanksOf(hosts: readonly string[]): HostRanks {
  const names = [...new Set(hosts)];
  const hostOf = hosts.map((host) => names.indexOf(host));
  const ranks = names.map((name) => hosts.flatMap((host, rank) => (host === name ? [rank] : [])));
  return { ranks, hostOf };
}
