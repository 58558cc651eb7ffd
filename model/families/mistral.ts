/** Mistral: llama whose layers all attend to a sliding window, unless the file sets none. */
import { z } from 'zod';
import type { ModelDescription, Tensors } from './description.ts';
import { parseKeys, size } from './hub-config.ts';
import { decoderSchema, describeDecoder, windowFields, windowsOf } from './hub-decoder.ts';

const schema = decoderSchema.extend({
  ...windowFields,
  // Absent means the reference's default; null means no window.
  sliding_window: z.union([size, z.null()]).default(4096),
});

/** @throws ConfigError listing the keys of config.json that are missing, wrong or not supported */
export function describeHubMistral(config: unknown, tensors: Tensors | undefined): ModelDescription {
  const keys = parseKeys(schema, config, 'config.json');
  const slidingWindows = windowsOf(keys, keys.sliding_window ?? 0, () => true);
  return describeDecoder('mistral', keys, tensors, { model: { slidingWindows } });
}
