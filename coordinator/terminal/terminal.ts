/** The terminal of a person, and whether it takes colours. Read next: line-editor.ts, which reads from it. */

export interface Terminal {
  readonly input: NodeJS.ReadStream;
  /** stderr: stdout belongs to the answers, also when they go to a file. */
  readonly output: NodeJS.WriteStream;
  readonly hasColours: boolean;
}

/** undefined where stdin or stderr is none, or it can only print (TERM=dumb). */
export function processTerminal(): Terminal | undefined {
  const { stdin: input, stderr: output, env } = process;
  if (!input.isTTY || !canRedraw(output, env)) return undefined;
  return { input, output, hasColours: (env['NO_COLOR'] ?? '') === '' };
}

/** Whether lines can be written over, as editing and bars need. */
export function canRedraw(output: NodeJS.WriteStream, env: NodeJS.ProcessEnv): boolean {
  return output.isTTY && env['TERM'] !== 'dumb';
}

/** For what is less important than an answer. */
export function dim(text: string, { hasColours }: Terminal): string {
  return hasColours ? `\u001b[2m${text}\u001b[22m` : text;
}
