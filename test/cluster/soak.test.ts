/** Short runs of scripts/faults/: strangers at every port, and a load with faults. The long ones stand in docs/log.md. */
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { connectToAll } from '../../scripts/faults/connections.ts';
import { soak } from '../../scripts/faults/soak.ts';
import { goldenFolder } from '../helpers/golden.ts';

const model = join(goldenFolder, 'stories260K');
// They look at processes under /proc.
const isLinux = process.platform === 'linux';

test.skipIf(!isLinux)(
  'strangers at every port change no answer and stop no process',
  async () => {
    const { ports, answers, wrongAnswers, status, restarts } = await connectToAll(model, 60, 5);
    expect({ ports, wrongAnswers, status, restarts }).toEqual({ ports: 4, wrongAnswers: 0, status: 'ok', restarts: 0 });
    expect(answers).toBeGreaterThan(0);
  },
  60_000,
);

test.skipIf(!isLinux)(
  'ranks that are killed and frozen under load leave nothing, and neither does the coordinator',
  async () => {
    const result = await soak({ model, faults: 3, everyMs: 500, pauseMs: 0, log: () => undefined });
    expect(result).toMatchObject({ faults: 3, wrongAnswers: 0, firstError: null, leftovers: [] });
    expect(result.answers).toBeGreaterThanOrEqual(4);
    const { first, last } = result;
    expect({ processes: last.processes, files: last.files }).toEqual({
      processes: first.processes,
      files: first.files,
    });
    expect(last.coordinatorDescriptors).toBeLessThanOrEqual(first.coordinatorDescriptors + 2);
  },
  90_000,
);
