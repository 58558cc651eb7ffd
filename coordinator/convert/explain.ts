/** Where each layer of a conversion loses, as a table for people. Meaning of the columns: LayerLoss in conversion-options.ts. */
import { formatTable } from '../table.ts';
import type { LayerLoss } from './conversion-options.ts';

/** @param layers empty for the published method, which says nothing of its layers */
export function explain(layers: readonly LayerLoss[]): string {
  if (layers.length === 0) return 'the published method does not say where its layers lose';
  const rows = layers.map((layer, i) => {
    const expected = layer.rotation + layer.rank;
    const share = (part: number): string => percent(expected > 0 ? part / expected : 0);
    return [
      `${i}`,
      share(layer.rotation),
      share(layer.rank),
      percent(layer.headsMissed),
      percent(layer.headsMissedRefitted),
      percent(layer.outputMissed),
    ];
  });
  const head = [
    'layer',
    'loss by RoPE',
    'loss by rank',
    'heads missed',
    'after refit of W_UV',
    'output missed after W_O',
  ];
  return formatTable(head, rows);
}

function percent(share: number | null): string {
  return share === null ? '-' : `${(100 * share).toFixed(2)} %`;
}
