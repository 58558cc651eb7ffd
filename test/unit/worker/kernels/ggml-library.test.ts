import { existsSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  BackendUnavailable,
  checkVersion,
  libraryFile,
  loadGgml,
  packageFolder,
  platformNames,
} from '../../../../worker/kernels/ggml/library.ts';
import { STORAGE } from '../../../../worker/kernels/ggml/tensor.ts';

describe('the ggml library', () => {
  it('knows the package of each platform, accelerated builds first', () => {
    expect(platformNames('linux', 'x64', false)).toEqual(['linux-x64']);
    expect(platformNames('linux', 'x64', true)).toEqual(['linux-x64-cuda', 'linux-x64-vulkan', 'linux-x64']);
    expect(platformNames('darwin', 'arm64', true)).toEqual(['mac-arm64-metal']);
    expect(platformNames('win32', 'arm64', false)).toEqual(['win-arm64']);
    expect(() => platformNames('sunos', 'x64', false)).toThrow(
      new BackendUnavailable(
        'ggml: no prebuilt libraries for sunos x64; there are some for linux-x64, linux-arm64, darwin-arm64, ' +
          'darwin-x64, win32-x64, win32-arm64; use --backend gpujs',
      ),
    );
  });

  it('takes the first installed package and names the one to install', () => {
    const [name] = platformNames(process.platform, process.arch, false);
    expect(existsSync(packageFolder(['not-a-platform', name!]))).toBe(true);
    expect(() => packageFolder(['not-a-platform'])).toThrow(
      new BackendUnavailable(
        'ggml: package @node-llama-cpp/not-a-platform is not installed (optional dependency; was npm run with ' +
          '--omit=optional?); run `npm install @node-llama-cpp/not-a-platform@3.21.1` or use --backend gpujs',
      ),
    );
  });

  it('finds the libraries under the names of every platform', () => {
    const linux = ['libggml-base.so', 'libggml-cpu-x64.so', 'libllama.vulkan.v0.4.0.so', 'libggml.vulkan.v0.4.0.so'];
    expect(libraryFile(linux, 'ggml')).toBe('libggml.vulkan.v0.4.0.so');
    expect(libraryFile(linux, 'ggml-base')).toBe('libggml-base.so');
    expect(libraryFile(['libggml-metal.so', 'libggml.metal.v0.4.0.dylib'], 'ggml')).toBe('libggml.metal.v0.4.0.dylib');
    expect(libraryFile(['libggml-base.so', 'libggml.v0.4.0.so'], 'ggml')).toBe('libggml.v0.4.0.so');
    expect(libraryFile(['ggml-base.dll', 'ggml.v0.4.0.dll'], 'ggml')).toBe('ggml.v0.4.0.dll');
    expect(() => libraryFile(['libllama.so'], 'ggml')).toThrow('ggml: no ggml library among libllama.so');
  });

  it('refuses another version of ggml', () => {
    expect(() => checkVersion('0.23.0', 'bins')).not.toThrow();
    expect(() => checkVersion('0.9.4', 'bins')).toThrow(
      new BackendUnavailable(
        'ggml: bins holds ggml 0.9.4, expected 0.23.0 (@node-llama-cpp 3.21.1); reinstall with `npm ci` or use ' +
          '--backend gpujs',
      ),
    );
  });

  it('is loaded once and stores types as tensor.ts says', () => {
    const library = loadGgml();
    expect(loadGgml()).toBe(library);
    const { functions } = library;
    for (const [type, { id, block, blockBytes }] of Object.entries(STORAGE)) {
      expect([functions.typeName(id), functions.blockSize(id), functions.typeSize(id)]).toEqual([
        type,
        block,
        blockBytes,
      ]);
    }
  });
});
