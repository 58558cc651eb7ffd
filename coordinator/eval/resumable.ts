/**
 * Work on many items that may be interrupted: with --out, each result is a line of FILE.state as soon as it is there, and
 * the same command goes on behind the last whole line. The first line holds the settings; a state of other settings is
 * refused, never mixed. When all is done the report replaces the state. Without --out nothing is written.
 */
import { appendFile, readFile, rm, writeFile } from 'node:fs/promises';
import type { z } from 'zod';
import { ConfigError, messageOf } from '../../config/errors.ts';
import { startProgress } from '../progress.ts';

export interface WorkRequest<Item, Result> {
  /** For the progress bar: what is done, in what unit. */
  readonly label: string;
  readonly unit: string;
  readonly items: readonly Item[];
  readonly schema: z.ZodType<Result>;
  readonly work: (item: Item, index: number) => Promise<Result>;
}

export class ResumableWork {
  private readonly out: string | undefined;
  /** Results of an earlier run, unparsed. */
  private readonly earlier: readonly string[];

  private constructor(out: string | undefined, earlier: readonly string[]) {
    this.out = out;
    this.earlier = earlier;
  }

  /**
   * Reads the state before anything is started.
   * @param settings everything that a result depends on  @param log one line when an earlier run goes on
   * @throws ConfigError when the state is of other settings, or --out cannot be written
   */
  static async open(out: string | undefined, settings: unknown, log: (line: string) => void): Promise<ResumableWork> {
    if (out === undefined) return new ResumableWork(out, []);
    const path = stateOf(out);
    const heading = JSON.stringify(settings);
    const text = await readState(path);
    // A line without its end was being written when the run was killed.
    const [first, ...lines] = text
      .slice(0, text.lastIndexOf('\n') + 1)
      .split('\n')
      .slice(0, -1);
    if (first !== undefined && first !== heading)
      throw new ConfigError(
        `--out ${out}: ${path} belongs to a run with other settings; repeat that command, delete the file or name another --out`,
      );
    if (lines.length > 0) log(`going on behind ${lines.length} results of ${path}`);
    try {
      await writeFile(path, [heading, ...lines].map((line) => `${line}\n`).join(''));
    } catch (cause) {
      throw new ConfigError(
        `--out ${out}: cannot be written (${messageOf(cause)}); name a file in a folder that is there`,
        { cause },
      );
    }
    return new ResumableWork(out, lines);
  }

  /** Results of all items, in order. @throws ConfigError when the state is damaged */
  async run<Item, Result>({ label, unit, items, schema, work }: WorkRequest<Item, Result>): Promise<Result[]> {
    const results = this.earlier.slice(0, items.length).map((line, i) => this.parse(line, i, schema));
    using progress = startProgress(label, items.length, { name: unit, size: 1 });
    progress.update(results.length);
    for (let i = results.length; i < items.length; i++) {
      const item = items[i];
      if (item === undefined) continue;
      const result = await work(item, i);
      results.push(result);
      if (this.out !== undefined) await appendFile(stateOf(this.out), `${JSON.stringify(result)}\n`);
      progress.update(results.length);
    }
    return results;
  }

  /** The report to --out, the state away. */
  async finish(report: unknown): Promise<void> {
    if (this.out === undefined) return;
    await writeFile(this.out, `${JSON.stringify(report, null, 2)}\n`);
    await rm(stateOf(this.out));
  }

  private parse<Result>(line: string, index: number, schema: z.ZodType<Result>): Result {
    try {
      return schema.parse(JSON.parse(line));
    } catch (cause) {
      throw new ConfigError(`${stateOf(this.out ?? '')}: line ${index + 2} is damaged; delete the file`, { cause });
    }
  }
}

function stateOf(out: string): string {
  return `${out}.state`;
}

async function readState(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return '';
    throw new ConfigError(`${path}: cannot be read (${messageOf(error)}); delete it or name another --out`, {
      cause: error,
    });
  }
}
