import { describe, expect, test } from 'vitest';
import { ConfigError } from '../../../../config/errors.ts';
import { launchedAs } from '../../../../coordinator/remote/launcher-env.ts';

const openMpi = { OMPI_COMM_WORLD_RANK: '1', OMPI_COMM_WORLD_SIZE: '2' };
const slurm = {
  SLURM_PROCID: '3',
  SLURM_NTASKS: '8',
  SLURM_STEP_NUM_TASKS: '4',
  SLURM_LAUNCH_NODE_IPADDR: '192.0.2.9',
};

describe('launchedAs', () => {
  test.each([
    ['mpirun', openMpi, { launcher: 'OpenMPI', rank: 1, worldSize: 2, coordinator: null }],
    ['srun', slurm, { launcher: 'Slurm', rank: 3, worldSize: 4, coordinator: 'tcp://192.0.2.9:7070' }],
    [
      'mpirun in a Slurm job',
      { ...slurm, ...openMpi },
      { launcher: 'OpenMPI', rank: 1, worldSize: 2, coordinator: 'tcp://192.0.2.9:7070' },
    ],
    [
      'an Indexed Job',
      { JOB_COMPLETION_INDEX: '0', TPLA_COORDINATOR: 'tcp://tpla:7070' },
      { launcher: 'Kubernetes', rank: 0, worldSize: null, coordinator: 'tcp://tpla:7070' },
    ],
    [
      'RANK',
      { RANK: '2', WORLD_SIZE: '3', MASTER_ADDR: 'head', MASTER_PORT: '9000' },
      { launcher: 'RANK', rank: 2, worldSize: 3, coordinator: 'tcp://head:9000' },
    ],
  ])('%s', (_, env, expected) => {
    expect(launchedAs(env)).toEqual(expected);
  });

  test.each([
    [
      'no launcher',
      { RANK: '' },
      '--from-env: expected one of OMPI_COMM_WORLD_RANK, SLURM_PROCID, RANK, JOB_COMPLETION_INDEX',
    ],
    ['no number', { RANK: 'one' }, '--from-env: RANK is "one"; expected a whole number'],
    ['a rank too many', { RANK: '2', WORLD_SIZE: '2' }, '--from-env: RANK is 2, not below WORLD_SIZE = 2'],
  ])('refuses %s', (_, env, message) => {
    expect(() => launchedAs(env)).toThrow(ConfigError);
    expect(() => launchedAs(env)).toThrow(message);
  });
});
