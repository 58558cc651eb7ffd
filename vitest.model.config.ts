import { defineConfig } from 'vitest/config';

/** The real-model run: needs what `tpla fetch` brings. */
export default defineConfig({
  test: {
    pool: 'forks',
    maxWorkers: 1,
    include: ['test/model/**/*.test.ts'],
    testTimeout: 600_000,
    hookTimeout: 600_000,
  },
});
