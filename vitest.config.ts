import { defineConfig } from 'vitest/config';

/** The default run: no download, no model file; native addons need forked workers. */
export default defineConfig({
  test: {
    pool: 'forks',
    maxWorkers: 2,
    include: ['test/{unit,suites,parity,cluster}/**/*.test.ts'],
    testTimeout: 30_000,
    hookTimeout: 30_000,
  },
});
