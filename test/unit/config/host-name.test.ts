import { hostname } from 'node:os';
import { expect, it } from 'vitest';
import { hostName } from '../../../config/host-name.ts';

it('is what TPLA_HOST says, else what the system says', () => {
  expect(hostName({ TPLA_HOST: 'b' })).toBe('b');
  expect(hostName({})).toBe(hostname());
  expect(() => hostName({ TPLA_HOST: '' })).toThrow('TPLA_HOST: expected 1 to 255 characters, got 0');
  expect(() => hostName({ TPLA_HOST: 'x'.repeat(256) })).toThrow('got 256');
});
