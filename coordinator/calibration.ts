/**
 * A cluster's calibration as its caller sees it: questions for one layer after another, answered by sums over all windows.
 * Order and meaning: calibrationSchema of collective/messages.ts. Read next: convert/convert-recipe.ts.
 */
import type { ExactTokens } from '../config/shard-plan.ts';
import type { FitStep } from '../config/schemes.ts';
import { joinSegments } from '../collective/window-sums.ts';
import type { Ask } from './ask-ranks.ts';
import type { RankReply } from './control-loop.ts';

export class Calibration {
  readonly #ask: Ask;
  #windows = 0;

  constructor(ask: Ask) {
    this.#ask = ask;
  }

  /**
   * @param windows of equal length; ranks divide them  @param refits layers will be refitted
   * @param without of a model with a latent: corrections that are not fitted
   * @param near tokens that the converted model attends to by the source's keys and values
   */
  async begin(
    windows: readonly (readonly number[])[],
    refits: boolean,
    without: readonly FitStep[] = [],
    near: ExactTokens | null = null,
  ): Promise<void> {
    this.#windows = windows.length;
    await this.#ask({
      kind: 'calibration',
      action: 'begin',
      windows: windows.map((window) => [...window]),
      refits,
      without: [...without],
      ...(near === null ? {} : { near: { ...near } }),
    });
  }

  /** Fields of collective/statistics.ts; layers in order. */
  async statistics(layer: number): Promise<Float64Array> {
    return this.#sums(await this.#ask({ kind: 'calibration', action: 'statistics', layer }));
  }

  /** Of all converted layers. */
  async sizes(ropeDim: number, latentDim: number): Promise<void> {
    await this.#ask({ kind: 'calibration', action: 'sizes', ropeDim, latentDim });
  }

  /** The original stream passes the layer. */
  async original(): Promise<void> {
    await this.#ask({ kind: 'calibration', action: 'original' });
  }

  /** @param maps layerMapFields of collective/refit-maps.ts  @returns valueEquationFields */
  async attend(maps: Float32Array): Promise<Float64Array> {
    return this.#sums(await this.#ask({ kind: 'calibration', action: 'attend' }, maps));
  }

  /** @param maps valueMapFields  @returns outputEquationFields */
  async values(maps: Float32Array): Promise<Float64Array> {
    return this.#sums(await this.#ask({ kind: 'calibration', action: 'values' }, maps));
  }

  /** The converted stream passes the layer. @param maps outputMapFields */
  async advance(maps: Float32Array): Promise<void> {
    await this.#ask({ kind: 'calibration', action: 'advance' }, maps);
  }

  /** Both streams of all windows as they are, original and converted. [windows][2][T * D] */
  async streams(): Promise<Float32Array> {
    const parts = (await this.#ask({ kind: 'calibration', action: 'streams' })).map(({ payload }) => payload);
    const all = new Float32Array(parts.reduce((length, part) => length + part.length, 0));
    let end = 0;
    for (const part of parts) {
      all.set(part, end);
      end += part.length;
    }
    return all;
  }

  /** Goes on before a layer. @param streams as `streams` gave them */
  async restore(layer: number, streams: Float32Array): Promise<void> {
    await this.#ask({ kind: 'calibration', action: 'restore', layer }, streams);
  }

  /** Both streams pass the next layer as the original one; its statistics are not needed. */
  async follow(layer: number): Promise<void> {
    await this.#ask({ kind: 'calibration', action: 'follow', layer });
  }

  /** The converted streams become the original ones: the layer counts as not converted. */
  async align(): Promise<void> {
    await this.#ask({ kind: 'calibration', action: 'align' });
  }

  /** Frees what the ranks hold. */
  async end(): Promise<void> {
    await this.#ask({ kind: 'calibration', action: 'end' });
  }

  #sums(replies: readonly RankReply[]): Float64Array {
    return joinSegments(
      replies.map(({ payload }) => payload),
      this.#windows,
    );
  }
}
