/**
 * Which rank a process gets that offers itself, why another gets none, and what to type so that one comes: the
 * coordinator's side of `tpla worker`. Pure: control.ts receives and answers.
 */
import type { ClusterConfig } from '../../config/cluster.ts';
import { packageVersion } from '../../config/version.ts';
import type { Offer } from '../../collective/greetings.ts';
import { missingRank, type Reduced } from './reduced.ts';

export interface PlacesOptions {
  readonly config: ClusterConfig;
  /** Checkpoint.identity of the coordinator's model. */
  readonly identity: string;
  /** Of processes that this run started itself, by ssh. */
  readonly token: string;
  /** As others reach it. */
  readonly endpoint: string;
  readonly hasKeys: boolean;
  /** undefined: the cluster is whole, and its ranks have the numbers that users give them. */
  readonly reduced: Reduced | undefined;
  /** Whether somebody waits for this rank now. */
  readonly isWanted: (rank: number) => boolean;
}

export type Place = { readonly rank: number } | { readonly refusal: string };

export class Places {
  readonly #options: PlacesOptions;

  constructor(options: PlacesOptions) {
    this.#options = options;
  }

  isRemote(rank: number): boolean {
    return this.#hostOf(rank) !== 'local';
  }

  /** A rank is given to the process that wants it; without a wish, the lowest that is free. */
  place(offer: Offer, isTaken: (rank: number) => boolean): Place {
    const refusal = this.#mismatch(offer);
    if (refusal !== null) return { refusal };
    const { reduced } = this.#options;
    const place = offer.rank === null ? this.#free(isTaken) : this.#wished(offer, offer.rank, isTaken);
    if ('refusal' in place && reduced !== undefined && missingRank(reduced, offer) !== null) reduced.onSpare(offer);
    return place;
  }

  /** What a user does so that the rank comes. */
  advice(rank: number): string | undefined {
    const host = this.#hostOf(rank);
    if (host === undefined || host === 'local') return undefined;
    if (host !== 'join') return `check that \`ssh ${host.replace('ssh://', '')}\` works without a password`;
    return `on its machine run: ${this.command(rank)}`;
  }

  /** For the line that says who is waited for. */
  hint(rank: number): string {
    const host = this.#hostOf(rank) ?? '';
    return host === 'join' ? `on its machine run: ${this.command(rank)}` : `starting it through ${host}`;
  }

  command(rank: number): string {
    const { endpoint, hasKeys, config } = this.#options;
    return `tpla worker --join ${endpoint} --rank ${this.#numberOf(rank)} --model ${config.model}${hasKeys ? ' --keys ./keys' : ''}`;
  }

  #free(isTaken: (rank: number) => boolean): Place {
    const { ranks } = this.#options.config;
    const free = ranks.findIndex(({ host }, rank) => host === 'join' && !isTaken(rank) && this.#options.isWanted(rank));
    return free === -1 ? { refusal: `no rank is free; those that join: ${this.#joining()}` } : { rank: free };
  }

  /** @param number in the whole cluster */
  #wished(offer: Offer, number: number, isTaken: (rank: number) => boolean): Place {
    const { reduced } = this.#options;
    const rank = reduced === undefined ? number : reduced.numbers.indexOf(number);
    const host = this.#hostOf(rank);
    if (host === undefined || host === 'local')
      return { refusal: `rank ${number} does not join from outside; ranks that do: ${this.#joining()}` };
    if (host !== 'join' && offer.token !== this.#options.token)
      return { refusal: `rank ${number} is started by the coordinator through ${host}` };
    if (isTaken(rank))
      return { refusal: `rank ${number} is taken by another process; leave --rank out to get a free one` };
    if (!this.#options.isWanted(rank)) return { refusal: `rank ${number} is not wanted at the moment` };
    return { rank };
  }

  #numberOf(rank: number): number {
    return this.#options.reduced?.numbers[rank] ?? rank;
  }

  #mismatch({ version, worldSize, modelIdentity }: Offer): string | null {
    const { config, identity, reduced } = this.#options;
    const { length } = (reduced?.whole ?? config).ranks;
    if (version !== packageVersion)
      return `it is version ${version}, the coordinator ${packageVersion}; install the same version`;
    if (worldSize !== null && worldSize !== length)
      return `its launcher says ${worldSize} ranks, the cluster has ${length}; make them agree`;
    if (modelIdentity === identity) return null;
    return (
      `its model has identity ${modelIdentity.slice(0, 16)}, the coordinator's (${config.model}) ${identity.slice(0, 16)}; ` +
      'give every rank the same files'
    );
  }

  #hostOf(rank: number): string | undefined {
    return this.#options.config.ranks[rank]?.host;
  }

  #joining(): string {
    const ranks = this.#options.config.ranks.flatMap(({ host }, rank) =>
      host === 'join' ? [this.#numberOf(rank)] : [],
    );
    return ranks.length === 0 ? 'none' : ranks.join(', ');
  }
}
