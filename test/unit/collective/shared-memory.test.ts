import { describe, expect, it } from 'vitest';
import { createLocalGroups } from '../../../collective/local-group.ts';
import { createSharedMemoryGroup } from '../../../collective/shared-memory.ts';
import { makeSharedMemory } from '../../helpers/groups.ts';
import { describeProcessGroup } from '../../suites/process-group.ts';

describe.skipIf(process.platform === 'win32')('where there is POSIX shared memory', () => {
  // All ranks in one process here, so that every wait lasts until the event loop turns; real processes: test/cluster.
  describeProcessGroup('shared memory', makeSharedMemory);

  it('names a rank that cannot map the segment, on every rank', async () => {
    const results = await Promise.allSettled(
      createLocalGroups(3).map((bootstrap, rank) =>
        // Rank 1 looks for another segment, as it would on another host.
        createSharedMemoryGroup({
          rank,
          worldSize: 3,
          runId: 'r',
          epoch: rank === 1 ? 2 : 1,
          timeoutMs: 1000,
          bootstrap,
        }),
      ),
    );
    for (const result of results) {
      expect(result.status === 'rejected' && String(result.reason)).toMatch(
        /^ConfigError: --transport shm: rank 1 cannot map \d+ B of shared memory \(error 2\); are all ranks on one host/,
      );
    }
  });
});
