/**
 * Maps shared-memory segments into the ranks of each host (POSIX shm_open and mmap, called through koffi) and makes the
 * group of ranks that are all on one host. A segment loses its name as soon as all have mapped it, so that no crash
 * leaves it behind. Refuses Windows, and ranks that cannot map it, by name. Read next: shared-memory-group.ts.
 */
import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import koffi from 'koffi';
import { ConfigError, invariant } from '../config/errors.ts';
import type { ProcessGroup } from './group.ts';
import { SharedMemoryGroup } from './shared-memory-group.ts';
import { segmentBytes, type Segment } from './shared-rounds.ts';

export interface SegmentSettings {
  readonly rank: number;
  readonly worldSize: number;
  /** With the epoch names the segments; another in every run. */
  readonly runId: string;
  readonly epoch: number;
  /** A group of the same ranks that works already, such as the one over ZeroMQ. Used only here. */
  readonly bootstrap: ProcessGroup;
}

/** @throws as mapSegment */
export async function createSharedMemoryGroup(
  settings: SegmentSettings & { readonly timeoutMs: number },
): Promise<ProcessGroup> {
  const { rank, worldSize, timeoutMs } = settings;
  const everyone = Array.from({ length: worldSize }, (_, each) => each);
  return new SharedMemoryGroup(rank, worldSize, timeoutMs, await mapSegment(settings, everyone));
}

/**
 * One segment for each host, all at once: every rank calls it, also one that is alone.
 * @param ranks those of this rank's host, as all of them name it
 * @throws ConfigError on every rank when any of them cannot map its segment; PeerError from the bootstrap group
 */
export async function mapSegment(settings: SegmentSettings, ranks: readonly number[]): Promise<Segment> {
  const { rank, worldSize, epoch, bootstrap } = settings;
  if (process.platform === 'win32') {
    throw new ConfigError('--transport shm: shared memory works on Linux and macOS; use --transport zeromq');
  }
  const [creator] = ranks;
  invariant(creator !== undefined && ranks.includes(rank), `rank ${rank} is none of its host's: ${ranks.join(', ')}`);
  const hash = createHash('sha256').update(settings.runId).digest('hex').slice(0, 12);
  const name = `/tpla-${hash}-${epoch}-${creator}`; // macOS allows 31 characters
  const bytes = segmentBytes(ranks.length);
  const c = loadLibc();
  const created = new Float32Array(worldSize); // error numbers; 0: none
  const opened = new Float32Array(worldSize);
  let segment: Segment | null = null;
  try {
    // The host's first rank creates, then the others open: the first all-reduce tells them that it is there.
    if (rank === creator) segment = mapNamed(c, name, bytes, true, created.subarray(rank));
    await bootstrap.allReduceSum(created, 'shared memory, create');
    if (rank !== creator && created[creator] === 0) segment = mapNamed(c, name, bytes, false, opened.subarray(rank));
    await bootstrap.allReduceSum(opened, 'shared memory, map');
  } finally {
    // All have mapped it, or it failed. Every rank does this, lest the creator be the one that died.
    c.shmUnlink(name);
  }
  const failures = created.map((code, each) => code || (opened[each] ?? 0));
  const failed = failures.findIndex((code) => code !== 0);
  if (failed === -1 && segment) return segment;
  segment?.unmap();
  throw new ConfigError(
    `--transport shm: rank ${failed} cannot map ${bytes} B of shared memory (error ${failures[failed]}); ` +
      'are all ranks on one host, and is /dev/shm large enough? Or use --transport zeromq',
  );
}

/** On failure writes the system's error number to `failure[0]` and returns null: all ranks have to hear of it. */
function mapNamed(c: Libc, name: string, bytes: number, create: boolean, failure: Float32Array): Segment | null {
  const flags = constants.O_RDWR | (create ? constants.O_CREAT | constants.O_EXCL : 0);
  if (create) c.shmUnlink(name);
  const fd = c.shmOpen(name, flags);
  if (fd < 0) return fail(koffi.errno(), failure);
  try {
    if (create && c.ftruncate(fd, bytes) !== 0) return fail(koffi.errno(), failure);
    // Reserves the memory now: a full /dev/shm would otherwise kill the process at the first write.
    const unreserved = create ? c.reserve(fd, bytes) : 0;
    if (unreserved !== 0) return fail(unreserved, failure);
    const address = c.mmap(bytes, fd);
    if (address === -1) return fail(koffi.errno(), failure);
    return {
      buffer: koffi.view(BigInt(address), bytes),
      unmap: () => void c.munmap(address, bytes),
      schedYield: () => void c.schedYield(),
    };
  } finally {
    c.close(fd);
  }
}

function fail(code: number, failure: Float32Array): null {
  failure[0] = code;
  return null;
}

interface Libc {
  readonly shmOpen: (name: string, flags: number) => number;
  readonly shmUnlink: (name: string) => number;
  readonly ftruncate: (fd: number, bytes: number) => number;
  /** Returns an error number; 0: reserved. */
  readonly reserve: (fd: number, bytes: number) => number;
  /** Returns the address; -1: failed. */
  readonly mmap: (bytes: number, fd: number) => number | bigint;
  readonly munmap: (address: number | bigint, bytes: number) => number;
  readonly close: (fd: number) => number;
  readonly schedYield: () => number;
}

function loadLibc(): Libc {
  const library = loadLibrary();
  // Variadic on macOS, where the mode would otherwise be passed in the wrong place.
  const shmOpen = library.func('int shm_open(const char *name, int flags, ...)');
  const mmap = library.func('intptr_t mmap(intptr_t, size_t, int, int, int, int64_t)');
  const isLinux = process.platform === 'linux';
  // macOS has no such call, and no size limit of its own for shared memory.
  const reserve = isLinux ? library.func('int posix_fallocate(int, int64_t, int64_t)') : () => 0;
  return {
    shmOpen: (name, flags) => shmOpen(name, flags, 'int', ownerOnly),
    shmUnlink: library.func('int shm_unlink(const char *)'),
    ftruncate: library.func('int ftruncate(int, int64_t)'),
    reserve: (fd, bytes) => reserve(fd, 0, bytes),
    mmap: (bytes, fd) => mmap(0, bytes, readWrite, mapShared, fd, 0),
    munmap: library.func('int munmap(intptr_t, size_t)'),
    close: library.func('int close(int)'),
    schedYield: library.func('int sched_yield()'),
  };
}

const ownerOnly = 0o600;
const readWrite = 3; // PROT_READ | PROT_WRITE
const mapShared = 1; // MAP_SHARED

/** The C library, part of this process. Before glibc 2.34, shm_open was in librt. */
function loadLibrary(): ReturnType<typeof koffi.load> {
  const own = koffi.load(null);
  try {
    own.func('int shm_unlink(const char *)');
    return own;
  } catch {
    return koffi.load('librt.so.1');
  }
}
