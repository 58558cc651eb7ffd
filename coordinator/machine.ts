/** What this machine is and which libraries are installed: for `tpla doctor` and for results of `tpla bench`. */
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism, cpus, freemem, totalmem } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import { mpiVersion } from '../collective/mpi.ts';
import { hasCurve } from '../collective/zmq.ts';
import { hostName } from '../config/host-name.ts';
import { packageVersion } from '../config/version.ts';

export interface Machine {
  readonly tpla: string;
  readonly node: string;
  readonly platform: string;
  readonly host: string;
  readonly cpu: string;
  readonly cores: number;
  readonly memoryBytes: number;
  readonly freeMemoryBytes: number;
  /** Versions; undefined: not installed. */
  readonly zeromq: string | undefined;
  readonly ggml: string | undefined;
  readonly gpujs: string | undefined;
  /** The installed MPI, for --transport mpi. */
  readonly mpi: string | undefined;
  /** Whether ZeroMQ can encrypt. */
  readonly curve: boolean;
}

export function describeMachine(): Machine {
  return {
    tpla: packageVersion,
    node: process.versions.node,
    platform: `${process.platform} ${process.arch}`,
    host: hostName(),
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    freeMemoryBytes: freemem(),
    zeromq: installedVersion('zeromq'),
    ggml: installedVersion(ggmlPackage()),
    gpujs: installedVersion('gpu.js'),
    mpi: mpiVersion(),
    curve: hasCurve,
  };
}

/** undefined: not installed. */
function installedVersion(name: string): string | undefined {
  for (const folder of createRequire(import.meta.url).resolve.paths(name) ?? []) {
    const manifest = join(folder, name, 'package.json');
    if (!existsSync(manifest)) continue;
    const parsed: unknown = JSON.parse(readFileSync(manifest, 'utf8'));
    return z.object({ version: z.string() }).parse(parsed).version;
  }
  return undefined;
}

/** The package with the prebuilt libraries for this platform. */
export function ggmlPackage(): string {
  const systems: Readonly<Partial<Record<NodeJS.Platform, string>>> = { darwin: 'mac', win32: 'win' };
  const system = systems[process.platform] ?? process.platform;
  const metal = process.platform === 'darwin' && process.arch === 'arm64' ? '-metal' : '';
  return `@node-llama-cpp/${system}-${process.arch}${metal}`;
}
