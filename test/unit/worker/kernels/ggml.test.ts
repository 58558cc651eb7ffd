import { createGgmlKernels } from '../../../../worker/kernels/ggml/ggml.ts';
import { GGML_TOLERANCES } from '../../../helpers/tolerances.ts';
import { describeKernels } from '../../../suites/kernels.ts';

describeKernels('ggml', () => createGgmlKernels({ threads: 1, device: '' }), { tolerances: GGML_TOLERANCES });
