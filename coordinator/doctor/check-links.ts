/**
 * Latency and bandwidth of each way between processes on different hosts: the coordinator's to each rank that it did not
 * start here (control plane), and each two ranks' (data plane). Read next: ../cluster-checks.ts.
 */
import type { Cluster } from '../cluster.ts';

export interface LinkCheck {
  /** null: the coordinator. */
  readonly from: number | null;
  readonly to: number;
  /** Half the median round trip of a hidden state. */
  readonly latencyUs: number;
  /** Of a message of 4 MB, one way. */
  readonly megabytesPerSecond: number;
}

const shortCount = 50;
const longFloats = 1 << 20;
const longCount = 5;
/** With more ranks only neighbours of the ring are measured: pairs grow with the square. */
const maxFullyMeasured = 8;

/** @param remote ranks that are not on the coordinator's machine, or need not be */
export async function checkLinks(cluster: Cluster, remote: readonly number[]): Promise<LinkCheck[]> {
  const { checks, hiddenDim, plan } = cluster;
  const links: LinkCheck[] = [];
  for (const to of remote)
    links.push(await measure(null, to, hiddenDim, (floats, count) => checks.control(to, floats, count)));
  // Between ranks of this machine alone the sums tell all there is.
  if (remote.length === 0) return links;
  for (const [from, to] of pairsOf(plan.worldSize)) {
    if (haveSharedMemory(cluster, from, to)) continue;
    const link = await measure(from, to, hiddenDim, (floats, count) => checks.link(from, to, floats, count));
    if (link.latencyUs > 0) links.push(link);
  }
  return links;
}

async function measure(
  from: number | null,
  to: number,
  hiddenDim: number,
  roundTrips: (floats: number, count: number) => Promise<readonly number[]>,
): Promise<LinkCheck> {
  const shortUs = median(await roundTrips(hiddenDim, shortCount));
  const longUs = median(await roundTrips(longFloats, longCount));
  const megabytesPerSecond = longUs > 0 ? (2 * longFloats * 4) / longUs : 0;
  return { from, to, latencyUs: shortUs / 2, megabytesPerSecond };
}

/** Then no link carries their sums. */
function haveSharedMemory({ ranks }: Cluster, a: number, b: number): boolean {
  return ranks[a]?.host === ranks[b]?.host && ranks[a]?.transport.startsWith('shared memory') === true;
}

function pairsOf(worldSize: number): [number, number][] {
  const ranks = Array.from({ length: worldSize }, (_, rank) => rank);
  if (worldSize > maxFullyMeasured) return ranks.map((rank) => [rank, (rank + 1) % worldSize]);
  return ranks.flatMap((from) => ranks.slice(from + 1).map((to): [number, number] => [from, to]));
}

function median(sorted: readonly number[]): number {
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}
