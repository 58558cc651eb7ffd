/**
 * Rank, number of ranks and the coordinator's address as launchers tell their processes: OpenMPI's mpirun, Slurm's srun,
 * a Kubernetes Indexed Job, or RANK and WORLD_SIZE as many tools set them. Pure.
 */
import { defaultRemoteBind } from '../../config/cluster.ts';
import { ConfigError } from '../../config/errors.ts';

export interface LaunchedAs {
  readonly launcher: string;
  readonly rank: number;
  /** null: the launcher does not say. */
  readonly worldSize: number | null;
  /** tcp://host:port; null: the launcher does not say. */
  readonly coordinator: string | null;
}

/** In this order: mpirun inside a Slurm job sees Slurm's variables too, which describe the job and not the process. */
const launchers = [
  { launcher: 'OpenMPI', rank: 'OMPI_COMM_WORLD_RANK', sizes: ['OMPI_COMM_WORLD_SIZE'] },
  { launcher: 'Slurm', rank: 'SLURM_PROCID', sizes: ['SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS'] },
  { launcher: 'RANK', rank: 'RANK', sizes: ['WORLD_SIZE'] },
  { launcher: 'Kubernetes', rank: 'JOB_COMPLETION_INDEX', sizes: ['WORLD_SIZE'] },
] as const;

const defaultPort = defaultRemoteBind.replace(/^.*:/, '');

/** @throws ConfigError when no launcher has set its variables, or one holds no number */
export function launchedAs(env: NodeJS.ProcessEnv): LaunchedAs {
  const found = launchers.find(({ rank }) => isSet(env[rank]));
  if (found === undefined)
    throw new ConfigError(
      `--from-env: expected one of ${launchers.map(({ rank }) => rank).join(', ')} in the environment, got none; ` +
        'start this with mpirun, srun or in an Indexed Job, or say --join and --rank',
    );
  const size = found.sizes.find((name) => isSet(env[name]));
  const rank = numberIn(env, found.rank);
  const worldSize = size === undefined ? null : numberIn(env, size);
  if (worldSize !== null && rank >= worldSize)
    throw new ConfigError(`--from-env: ${found.rank} is ${rank}, not below ${size} = ${worldSize}`);
  return { launcher: found.launcher, rank, worldSize, coordinator: coordinatorIn(env) };
}

/** TPLA_COORDINATOR, else MASTER_ADDR, else the node where srun was called, which is where a batch script runs. */
function coordinatorIn(env: NodeJS.ProcessEnv): string | null {
  const { TPLA_COORDINATOR: whole, MASTER_ADDR: master, MASTER_PORT: port, SLURM_LAUNCH_NODE_IPADDR: srun } = env;
  if (isSet(whole)) return whole;
  const host = isSet(master) ? master : srun;
  return isSet(host) ? `tcp://${host}:${isSet(port) ? port : defaultPort}` : null;
}

function isSet(value: string | undefined): value is string {
  return value !== undefined && value !== '';
}

function numberIn(env: NodeJS.ProcessEnv, name: string): number {
  const text = env[name] ?? '';
  if (/^\d{1,6}$/.test(text)) return Number(text);
  throw new ConfigError(`--from-env: ${name} is ${JSON.stringify(text)}; expected a whole number`);
}
