/**
 * `tpla run [prompt]`: a local cluster, one answer streamed to the terminal, then a table of what each rank did. Without a
 * prompt, on a terminal: a chat. Read next: ../terminal/chat.ts.
 */
import { randomInt } from 'node:crypto';
import type { Argv } from 'yargs';
import { ConfigError } from '../../config/errors.ts';
import { layOut } from '../cluster-layout.ts';
import { decodeUtf8, type CommandContext } from '../command-context.ts';
import { generate } from '../engine.ts';
import { chatTemplateFlag, clusterFlags, jsonFlag, samplingFlags } from '../flags.ts';
import { requireRoom, type Generation } from '../generation.ts';
import { rankTable, reportOf } from '../run-report.ts';
import type { Sampling } from '../sampler.ts';
import { openModel, startCluster, type SessionFlags } from '../session.ts';
import { chat } from '../terminal/chat.ts';
import { convertFlag } from '../convert/conversion-flags.ts';
import { openText, type ModelText } from '../text.ts';

const runFlags = <T>(command: Argv<T>) =>
  convertFlag(jsonFlag(samplingFlags(clusterFlags(command))))
    .positional('prompt', {
      type: 'string',
      describe: 'text to answer; without it a chat begins on a terminal, otherwise standard input is read',
    })
    .option('raw', {
      type: 'boolean',
      default: false,
      describe: 'continue the text as it is instead of answering it through the chat template',
    })
    .option('system', { type: 'string', describe: 'system message of the chat' })
    .option('chat-template', chatTemplateFlag);

/** What `run` needs of its flags; the demo fills it from constants. */
export interface RunRequest extends SessionFlags, Sampling {
  /** undefined: standard input is read. */
  readonly prompt: string | undefined;
  readonly raw: boolean;
  readonly system: string | undefined;
  /** File; undefined: the model's own. */
  readonly chatTemplate: string | undefined;
  readonly maxTokens: number;
  /** undefined: a random one. */
  readonly seed: number | undefined;
  readonly stop: readonly string[] | undefined;
  readonly json: boolean;
}

export function addRunCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'run [prompt]',
    'answer one prompt on a local cluster, streamed, then a table for each rank; without a prompt, a chat',
    (command) => runFlags(command),
    (flags) => run(flags, context),
  );
}

/** Starts a cluster, streams one answer, prints the table. */
export async function run(flags: RunRequest, context: CommandContext): Promise<void> {
  const { terminal } = context;
  if (flags.prompt === undefined && terminal !== undefined && !flags.json) return chat(flags, terminal, context);
  const prompt = await promptOf(flags, context);
  await using model = await openModel(flags, context);
  const text = await openText(model.checkpoint.path, flags.chatTemplate);
  const promptIds = flags.raw ? text.encodeRaw(prompt) : text.encodeChat(prompt, flags.system);
  // Before any process is started: a prompt that is too long need not wait for the weights.
  requireRoom(promptIds.length, layOut(model.checkpoint, model.config).options.contextTokens);
  await using cluster = await startCluster(model, context);
  const seed = flags.seed ?? randomInt(2 ** 32);
  const answer = { text: '', tokenIds: [] as number[] };
  for await (const event of generate(cluster, generationOf(flags, promptIds, seed, text))) {
    answer.text += event.text;
    if (!flags.json) context.write(event.text);
    if (event.kind === 'token') {
      answer.tokenIds.push(event.tokenId);
      continue;
    }
    const report = reportOf(cluster, event.usage);
    if (flags.json)
      context.write(`${JSON.stringify({ ...answer, finishReason: event.finishReason, seed, ...report })}\n`);
    else {
      context.write('\n');
      context.log(`\n${rankTable(report)}`);
    }
  }
}

/**
 * An empty prompt is refused in a chat; raw it means the start token alone, where the model has one.
 * @throws ConfigError when there is none, or standard input is not UTF-8
 */
async function promptOf({ prompt: argument, raw }: RunRequest, context: CommandContext): Promise<string> {
  if (argument === undefined && context.inputIsTerminal)
    throw new ConfigError(
      'prompt: none given; write `tpla run "text"` or pipe a text into it (a chat needs standard input and error on a terminal, and no --json)',
    );
  const prompt = argument ?? decodeUtf8(await context.readInput(), 'prompt on standard input').replace(/\r?\n$/, '');
  if (prompt === '' && !raw) throw new ConfigError('prompt: it is empty; give a text');
  return prompt;
}

function generationOf(flags: RunRequest, promptIds: readonly number[], seed: number, text: ModelText): Generation {
  const { temperature, topK, topP, minP, repeatPenalty } = flags;
  return {
    promptIds,
    sampling: { temperature, topK, topP, minP, repeatPenalty },
    seed,
    maxTokens: flags.maxTokens,
    stop: flags.stop ?? [],
    endIds: text.endIds,
    text: text.newStream(),
  };
}
