/**
 * The conformance suite of the Kernels interface: every backend passes it, compared with plain loops in float64 written
 * for the tests (kernels/expected.ts). A backend's own test is a call of `describeKernels` plus what only it does.
 */
import { describe, expect } from 'vitest';
import type { Kernels } from '../../worker/kernels/kernels.ts';
import { describeAttention } from './kernels/attention.ts';
import { describeAttentionParts } from './kernels/attention-parts.ts';
import { describeElementwise } from './kernels/elementwise.ts';
import { describeExperts } from './kernels/experts.ts';
import { openKernelSuite } from './kernels/harness.ts';
import type { KernelSuiteOptions } from './kernels/harness.ts';
import { describeMatmul } from './kernels/matmul.ts';
import { describePrograms } from './kernels/programs.ts';
import { describeRopeAndNorm } from './kernels/rope-norm.ts';
import { describeViews } from './kernels/views.ts';

export function describeKernels(name: string, create: () => Kernels, options: KernelSuiteOptions): void {
  describe(`Kernels: ${name}`, () => {
    const suite = openKernelSuite(create, options);
    suite.test('names itself and its device', (kernels) => {
      expect(kernels.name).not.toBe('');
      expect(kernels.device).not.toBe('');
      expect(kernels.supportsWeights('f32')).toBe(true);
    });
    suite.test('says what memory a tensor takes', (kernels) => {
      const [small, large] = [kernels.allocate('f32', [3, 32]), kernels.allocate('f32', [7, 32], 'rows')];
      expect([kernels.sizeOf(small), kernels.sizeOf(large)]).toEqual([384, 896]);
      expect(kernels.sizeOf(kernels.allocate('f16', [4, 32]))).toBeGreaterThanOrEqual(256);
    });
    describeMatmul(suite);
    describeExperts(suite);
    describeElementwise(suite);
    describeRopeAndNorm(suite);
    describeViews(suite);
    describeAttention(suite);
    describeAttentionParts(suite);
    describePrograms(suite);
  });
}
