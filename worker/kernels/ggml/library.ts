/**
 * Finds the prebuilt ggml libraries in the optional dependency @node-llama-cpp/<platform>, checks their version and
 * loads them once per process. Throws BackendUnavailable when the package is missing, cannot be loaded or holds another
 * ggml. What is called in the libraries is listed in functions.ts.
 */
import { readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import koffi from 'koffi';
import { bindFunctions, captureLog, type GgmlFunctions } from './functions.ts';

/** The one version whose C API functions.ts describes: the one inside @node-llama-cpp 3.21.1. */
const GGML_VERSION = '0.23.0';
const PACKAGE_VERSION = '3.21.1';

/** ggml cannot be used on this machine. The message says what to install; the other backends still work. */
export class BackendUnavailable extends Error {
  override readonly name = 'BackendUnavailable';
}

/** The loaded libraries. */
export interface GgmlLibrary {
  readonly functions: GgmlFunctions;
  /** Instruction set of the CPU library that ggml chose: 'sapphirerapids', 'armv8.2_2'; '' where there is only one. */
  readonly cpuVariant: string;
}

/** ggml registers devices in the process, not in an object: a second load would list every device twice. */
let loaded: GgmlLibrary | undefined;

/**
 * Loads ggml, or returns what is loaded.
 * @param accelerated also accept the CUDA or Vulkan build of the package, if it is installed
 * @throws BackendUnavailable
 */
export function loadGgml(accelerated = false): GgmlLibrary {
  loaded ??= loadFrom(packageFolder(platformNames(process.platform, process.arch, accelerated)));
  return loaded;
}

/** Package names without scope, best first. @throws BackendUnavailable for a platform without prebuilt libraries */
export function platformNames(platform: string, arch: string, accelerated: boolean): readonly string[] {
  const names: Readonly<Record<string, string>> = {
    'linux-x64': 'linux-x64',
    'linux-arm64': 'linux-arm64',
    'darwin-arm64': 'mac-arm64-metal',
    'darwin-x64': 'mac-x64',
    'win32-x64': 'win-x64',
    'win32-arm64': 'win-arm64',
  };
  const name = names[`${platform}-${arch}`];
  if (name === undefined) {
    throw new BackendUnavailable(
      `ggml: no prebuilt libraries for ${platform} ${arch}; there are some for ${Object.keys(names).join(', ')}; ` +
        'use --backend gpujs',
    );
  }
  return accelerated && arch === 'x64' && platform !== 'darwin' ? [`${name}-cuda`, `${name}-vulkan`, name] : [name];
}

/** Folder with the libraries of the first installed package. @throws BackendUnavailable when none is installed */
export function packageFolder(names: readonly string[]): string {
  const require = createRequire(import.meta.url);
  let cause: unknown;
  for (const name of names) {
    try {
      // The packages export their main file only; the libraries lie beside its folder.
      return join(dirname(require.resolve(`@node-llama-cpp/${name}`)), '..', 'bins', name);
    } catch (error) {
      cause = error;
    }
  }
  const wanted = `@node-llama-cpp/${names.at(-1)}`;
  throw new BackendUnavailable(
    `ggml: package ${wanted} is not installed (optional dependency; was npm run with --omit=optional?); ` +
      `run \`npm install ${wanted}@${PACKAGE_VERSION}\` or use --backend gpujs`,
    { cause },
  );
}

/** @throws BackendUnavailable for any version but ours: functions and structures may have changed. */
export function checkVersion(version: string, folder: string): void {
  if (version === GGML_VERSION) return;
  throw new BackendUnavailable(
    `ggml: ${folder} holds ggml ${version}, expected ${GGML_VERSION} (@node-llama-cpp ${PACKAGE_VERSION}); ` +
      'reinstall with `npm ci` or use --backend gpujs',
  );
}

function loadFrom(folder: string): GgmlLibrary {
  try {
    const files = readdirSync(folder);
    // Globally: the other libraries, loaded later by ggml itself, find the base by its name.
    const base = koffi.load(join(folder, libraryFile(files, 'ggml-base')), { global: true });
    const registry = koffi.load(join(folder, libraryFile(files, 'ggml')), { global: true });
    const functions = bindFunctions(base, registry);
    checkVersion(functions.version(), folder);
    // ggml reports on stderr which library it chose; a worker's stderr is for failures, so keep the text instead.
    const log = captureLog(functions, () => functions.loadBackends(folder));
    return { functions, cpuVariant: /ggml-cpu-([\w.]+?)\.(?:so|dylib|dll)/.exec(log)?.[1] ?? '' };
  } catch (error) {
    if (error instanceof BackendUnavailable) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new BackendUnavailable(`ggml: cannot load the libraries in ${folder}: ${reason}; use --backend gpujs`, {
      cause: error,
    });
  }
}

/** Stem 'ggml' is 'libggml.v0.4.0.so', 'libggml.metal.v0.4.0.dylib' or 'ggml.v0.4.0.dll'. @throws BackendUnavailable */
export function libraryFile(files: readonly string[], stem: string): string {
  const pattern = new RegExp(`^(?:lib)?${stem}(?:\\.[a-z]+)?(?:\\.v[\\d.]+)?\\.(?:so|dylib|dll)$`);
  const file = files.find((name) => pattern.test(name));
  if (file === undefined) throw new BackendUnavailable(`ggml: no ${stem} library among ${files.join(', ')}`);
  return file;
}
