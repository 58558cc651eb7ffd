/**
 * What the coordinator writes to the stdin of a worker that it starts through ssh: one line of JSON with the secrets of
 * the run. The worker ends when its stdin does. Read next: ssh-launch.ts (writes), ../commands/worker.ts (reads).
 */
import type { Readable } from 'node:stream';
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';

const attachmentSchema = z.strictObject({
  /** Of this run: proves that the coordinator itself started the worker. */
  token: z.string(),
  keys: z.strictObject({ publicKey: z.string(), secretKey: z.string(), coordinatorKey: z.string() }).nullable(),
});
export type Attachment = z.infer<typeof attachmentSchema>;

const maxLineBytes = 4096;
const lineDeadlineMs = 30_000;

export function attachmentLine(attachment: Attachment): string {
  return `${JSON.stringify(attachment)}\n`;
}

/** The first line of `input`; the stream stays open and flowing. @throws ConfigError when it is no such line, or late */
export function readAttachment(input: Readable): Promise<Attachment> {
  return new Promise((resolve, reject) => {
    let text = '';
    const refuse = (why: string): void =>
      settle(() =>
        reject(new ConfigError(`--attached: ${why}; it is for \`tpla serve\`, which writes a line of JSON to stdin`)),
      );
    const timer = setTimeout(() => refuse(`no line on stdin in ${lineDeadlineMs} ms`), lineDeadlineMs);
    const onEnd = (): void => refuse('stdin ended before its first line');
    const onData = (chunk: Buffer): void => {
      text += chunk.toString('utf8');
      const end = text.indexOf('\n');
      if (end === -1 && text.length <= maxLineBytes) return;
      const parsed = attachmentSchema.safeParse(parse(text.slice(0, Math.max(end, 0))));
      if (parsed.success) settle(() => resolve(parsed.data));
      else refuse('the first line of stdin is not what it should be');
    };
    const settle = (action: () => void): void => {
      clearTimeout(timer);
      input.off('data', onData).off('end', onEnd);
      input.resume();
      action();
    };
    input.on('data', onData).on('end', onEnd);
  });
}

/** undefined: no JSON. */
function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
