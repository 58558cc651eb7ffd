/** Starts `tpla serve` as a user does, on a tiny model that knows chats, and gives clients for it. */
import { cpSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import OpenAI from 'openai';
import { z } from 'zod';
import { goldenFolder } from './golden.ts';
import { Sandbox, type Finished, type Running } from './program.ts';

const readySchema = z.object({
  ready: z.literal(true),
  url: z.string(),
  pid: z.number(),
  ranks: z.array(z.object({ rank: z.number(), pid: z.number(), host: z.string() })),
});

export interface Served extends AsyncDisposable {
  readonly url: string;
  readonly ranks: z.infer<typeof readySchema>['ranks'];
  readonly client: OpenAI;
  readonly running: Running;
  readonly sandbox: Sandbox;
  /** SIGTERM, and the end of the program. */
  stop(): Promise<Finished>;
}

/** What the chat model of these tests is served as. */
export const chatModelName = 'chat-stories';

export const greedyChat = { model: chatModelName, temperature: 0, max_tokens: 24 };

export function saidByUser(content: string): [{ role: 'user'; content: string }] {
  return [{ role: 'user', content }];
}

/** stories260K with a chat template, in a folder of its own; removed with the sandbox. */
export function chatModel(sandbox: Sandbox): string {
  const folder = join(sandbox.folder, 'cache', chatModelName);
  mkdirSync(folder, { recursive: true });
  cpSync(join(goldenFolder, 'stories260K'), folder, { recursive: true });
  writeFileSync(
    join(folder, 'chat_template.jinja'),
    "{{ '<s>' }}{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}. {% else %}{{ message.content }} {% endif %}{% endfor %}",
  );
  return folder;
}

export async function serve(
  args: readonly string[],
  options: { env?: Record<string, string>; model?: string; apiKey?: string } = {},
): Promise<Served> {
  const sandbox = new Sandbox();
  const model = options.model ?? chatModel(sandbox);
  const running = sandbox.start(['serve', '--model', model, '--listen', '127.0.0.1:0', '--json', ...args], {
    env: options.env ?? {},
  });
  let stdout = '';
  running.child.stdout?.on('data', (text: string) => (stdout += text));
  await running.printed('"ready":true');
  const { url, ranks } = readySchema.parse(JSON.parse(stdout.split('\n')[0] ?? ''));
  const stop = async (): Promise<Finished> => {
    running.child.kill('SIGTERM');
    return running.finished;
  };
  return {
    url,
    ranks,
    running,
    sandbox,
    stop,
    client: new OpenAI({ baseURL: `${url}/v1`, apiKey: options.apiKey ?? 'none', maxRetries: 0 }),
    async [Symbol.asyncDispose]() {
      await stop();
      sandbox[Symbol.dispose]();
    },
  };
}

/** Everything that /v1/cluster says of the scheduler. */
export async function schedulerOf(url: string): Promise<{ running: number; queued: number; slots: number }> {
  const body = z
    .object({ scheduler: z.object({ running: z.number(), queued: z.number(), slots: z.number() }) })
    .parse(await (await fetch(`${url}/v1/cluster`)).json());
  return body.scheduler;
}
