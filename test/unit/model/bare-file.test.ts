/** Files of tensors that do not say of which model, told from models and from damage. */
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { ConfigError } from '../../../config/errors.ts';
import { openBareFile } from '../../../model/bare-file.ts';
import { tinyModel } from '../../helpers/golden.ts';
import { golden } from './fixtures.ts';

test('a GGUF without metadata of a model', async () => {
  await using file = await openBareFile(join(golden, 'malformed/gguf/own-ok-one-tensor.gguf'));
  expect([...(file?.tensors.values() ?? [])]).toMatchObject([{ name: 't', type: 'f32', shape: [8], bytes: 32 }]);
});

test('a safetensors file alone', async () => {
  await using file = await openBareFile(join(golden, 'malformed/safetensors/zero_sized_tensor.safetensors'));
  expect([...(file?.tensors.values() ?? [])]).toMatchObject([{ name: 'test', shape: [2, 0], bytes: 0 }]);
});

test('a model, its weights and what does not exist are none', async () => {
  expect(await openBareFile(tinyModel('llama-gqa'))).toBeUndefined();
  expect(await openBareFile(join(tinyModel('llama-gqa'), 'model.safetensors'))).toBeUndefined();
  expect(await openBareFile('/nowhere.gguf')).toBeUndefined();
});

test('damage is refused', async () => {
  await expect(openBareFile(join(golden, 'malformed/gguf/own-tensors-overlap.gguf'))).rejects.toThrow(ConfigError);
});
