/**
 * An installed OpenMPI, called through koffi: found at run time, never required. Its communicator, datatype and operation
 * are exported globals, so another MPI, whose handles are numbers, is refused by name. A rank must have been started by
 * mpirun or srun; a rank that dies ends the whole job, since MPI has no recovery. Read next: mpi-group.ts.
 */
import koffi from 'koffi';
import { ConfigError, messageOf, PeerError } from '../config/errors.ts';

/** Blocking calls on the world communicator. Counts and displacements are in elements. [size] each */
export interface Mpi {
  readonly rank: number;
  readonly size: number;
  readonly allReduce: (from: Float32Array, to: Float32Array) => void;
  readonly allToAll: (
    from: Float32Array,
    sendCounts: Int32Array,
    sendStarts: Int32Array,
    to: Float32Array,
    receiveCounts: Int32Array,
    receiveStarts: Int32Array,
  ) => void;
  readonly allGather: (part: Float32Array, to: Float32Array, counts: Int32Array, starts: Int32Array) => void;
  readonly broadcast: (buffer: Float32Array, root: number) => void;
  readonly barrier: () => void;
}

const libraries = ['libmpi.so.40', 'libmpi.so', 'libmpi.40.dylib', 'libmpi.dylib'];

/** MPI_MAX_LIBRARY_VERSION_STRING is 256 in OpenMPI, 8192 in MPICH. */
const maxVersionBytes = 16_384;

let opened: Mpi | undefined;

/** Initialises MPI, once per process. @throws ConfigError where it is missing or of another kind */
export function openMpi(): Mpi {
  opened ??= open();
  return opened;
}

/** The installed library in its own words, 'Open MPI v4.1.4'; undefined: none. Initialises nothing. */
export function mpiVersion(): string | undefined {
  try {
    const getVersion = loadLibrary().func('MPI_Get_library_version', 'int', ['void *', '_Out_ int *']);
    const text = Buffer.alloc(maxVersionBytes);
    const length: [number] = [0];
    getVersion(text, length);
    return text.toString('utf8', 0, length[0]).split(',')[0]?.trim();
  } catch {
    return undefined;
  }
}

function open(): Mpi {
  const library = loadLibrary();
  let world: unknown, float: unknown, sum: unknown;
  try {
    world = library.symbol('ompi_mpi_comm_world', 'void');
    float = library.symbol('ompi_mpi_float', 'void');
    sum = library.symbol('ompi_mpi_op_sum', 'void');
  } catch (cause) {
    throw new ConfigError('transport mpi: the MPI library found here is not OpenMPI; install OpenMPI 4 or 5', {
      cause,
    });
  }
  const call = (name: string, ...types: string[]): ((...values: unknown[]) => void) => {
    const func = library.func(name, 'int', types);
    return (...values) => {
      const code: unknown = func(...values);
      if (code !== 0) throw new PeerError(`${name} failed with code ${String(code)}`);
    };
  };
  call('MPI_Init', 'void *', 'void *')(null, null);
  const finalize = call('MPI_Finalize');
  process.once('exit', () => finalize());
  const numberOf = (name: string): number => {
    const out: [number] = [0];
    call(name, 'void *', '_Out_ int *')(world, out);
    return out[0];
  };
  const allReduce = call('MPI_Allreduce', 'void *', 'void *', 'int', 'void *', 'void *', 'void *');
  const allToAll = call(
    'MPI_Alltoallv',
    ...Array<string>(3).fill('void *'),
    'void *',
    ...Array<string>(5).fill('void *'),
  );
  const allGather = call('MPI_Allgatherv', 'void *', 'int', ...Array<string>(6).fill('void *'));
  const broadcast = call('MPI_Bcast', 'void *', 'int', 'void *', 'int', 'void *');
  const barrier = call('MPI_Barrier', 'void *');
  return {
    rank: numberOf('MPI_Comm_rank'),
    size: numberOf('MPI_Comm_size'),
    allReduce: (from, to) => allReduce(from, to, from.length, float, sum, world),
    allToAll: (from, sendCounts, sendStarts, to, counts, starts) =>
      allToAll(from, sendCounts, sendStarts, float, to, counts, starts, float, world),
    allGather: (part, to, counts, starts) => allGather(part, part.length, float, to, counts, starts, float, world),
    broadcast: (buffer, root) => broadcast(buffer, buffer.length, float, root, world),
    barrier: () => barrier(world),
  };
}

function loadLibrary(): ReturnType<typeof koffi.load> {
  const failures: string[] = [];
  for (const name of libraries) {
    try {
      // Global: OpenMPI loads its own components, which look for its symbols.
      return koffi.load(name, { global: true });
    } catch (error) {
      failures.push(messageOf(error));
    }
  }
  throw new ConfigError(
    `transport mpi: no OpenMPI library here (${failures[0]}); install OpenMPI, or use --transport auto, shm or zeromq`,
  );
}
