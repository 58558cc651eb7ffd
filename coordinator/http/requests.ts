/**
 * Bodies of requests as zod schemas: what each field means and which values there are. Unknown fields are let through,
 * because OpenAI clients send fields of services that this is not; a wrong type or range is refused with the field's
 * name, and so is a field that would change the answer if it were heeded. Read next: chat.ts, completions.ts.
 */
import { z } from 'zod';
import { ApiError } from './api-error.ts';

/** Most answers of one request. */
const maxChoices = 16;

const token = z.number().int().nonnegative();
const wholeNumber = z.number().int();

/** What both kinds of generation take. null means: not given. */
const generationFields = {
  model: z.string().nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.looseObject({ include_usage: z.boolean().nullish() }).nullish(),
  n: z.number().int().min(1).max(maxChoices).nullish(),
  stop: z
    .union([z.string(), z.array(z.string()).max(16)], { error: 'expected a text or a list of at most 16' })
    .nullish(),
  seed: wholeNumber.nullish(),
  max_tokens: z.number().int().min(1).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  logit_bias: z
    .record(z.string().regex(/^\d+$/, 'expected token ids as keys'), z.number().min(-100).max(100))
    .nullish(),
  /** Beyond OpenAI's, as llama.cpp and vLLM name them. */
  top_k: z.number().int().min(-1).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  repeat_penalty: z.number().min(0.01).max(100).nullish(),
  repetition_penalty: z.number().min(0.01).max(100).nullish(),
  ignore_eos: z.boolean().nullish(),
};

const textPart = z.looseObject({
  type: z.literal('text', {
    error: ({ input }) =>
      typeof input === 'string'
        ? `${input} parts are not supported by this server; send text parts`
        : 'expected the type of the part, such as "text"',
  }),
  text: z.string(),
});

const messageSchema = z.looseObject({
  role: z.enum(['system', 'developer', 'user', 'assistant', 'tool', 'function']),
  content: z.union([z.string(), z.array(textPart)], { error: 'expected a text or a list of text parts' }).nullish(),
});

const responseFormatSchema = z.discriminatedUnion('type', [
  z.looseObject({ type: z.literal('text') }),
  z.looseObject({ type: z.literal('json_object') }),
  z.looseObject({
    type: z.literal('json_schema'),
    json_schema: z.looseObject({ schema: z.record(z.string(), z.unknown()).nullish() }),
  }),
]);
export type ResponseFormat = z.infer<typeof responseFormatSchema>;

export const chatRequestSchema = z.looseObject({
  ...generationFields,
  messages: z.array(messageSchema).min(1, { error: 'expected at least one message' }),
  max_completion_tokens: z.number().int().min(1).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.number().int().min(0).max(20).nullish(),
  response_format: responseFormatSchema.nullish(),
  tools: notSupported('tools are', (value) => Array.isArray(value) && value.length > 0),
  functions: notSupported('functions are', (value) => Array.isArray(value) && value.length > 0),
  audio: notSupported('audio output is', (value) => value !== undefined && value !== null),
});
export type ChatRequest = z.infer<typeof chatRequestSchema>;
export type ChatRequestMessage = z.infer<typeof messageSchema>;

export const completionRequestSchema = z.looseObject({
  ...generationFields,
  prompt: z.union(
    [z.string(), z.array(z.string()).min(1), z.array(token).min(1), z.array(z.array(token).min(1)).min(1)],
    { error: 'expected a text, a list of texts, a list of token ids, or a list of such lists' },
  ),
  logprobs: z.number().int().min(0).max(20).nullish(),
  echo: z.boolean().nullish(),
  best_of: z.number().int().min(1).nullish(),
  suffix: notSupported('a suffix is', (value) => typeof value === 'string' && value !== ''),
  response_format: responseFormatSchema.nullish(),
});
export type CompletionRequest = z.infer<typeof completionRequestSchema>;
export type GenerationRequest = Pick<CompletionRequest, keyof typeof generationFields>;

export const tokenizeRequestSchema = z.looseObject({
  /** llama.cpp's name and vLLM's. */
  content: z.string().nullish(),
  prompt: z.string().nullish(),
  messages: z.array(messageSchema).min(1).nullish(),
  add_special: z.boolean().nullish(),
  add_special_tokens: z.boolean().nullish(),
});

export const detokenizeRequestSchema = z.looseObject({ tokens: z.array(token) });

export const applyTemplateRequestSchema = z.looseObject({ messages: z.array(messageSchema).min(1) });

/** @throws ApiError 400 naming the first field that is wrong */
export function parseBody<Schema extends z.ZodType>(schema: Schema, body: unknown): z.infer<Schema> {
  if (typeof body !== 'object' || body === null || Array.isArray(body))
    throw new ApiError(400, 'body: expected a JSON object; send one with content-type application/json');
  const result = schema.safeParse(body, { reportInput: true });
  if (result.success) return result.data;
  const [first] = result.error.issues;
  const issue = first === undefined ? undefined : deepest(first);
  const param = pathText(issue?.path ?? []);
  throw new ApiError(400, `${param === '' ? 'body' : param}: ${messageFor(issue)}`, {
    param,
    code: issue?.code === 'invalid_type' ? 'invalid_type' : 'invalid_value',
  });
}

function notSupported(name: string, isUsed: (value: unknown) => boolean) {
  return z
    .unknown()
    .superRefine((value, context) => {
      if (isUsed(value)) context.addIssue(`${name} not supported by this server; leave the field out`);
    })
    .optional();
}

/** Of a union the branch that got furthest explains best. */
function deepest(issue: z.core.$ZodIssue): z.core.$ZodIssue {
  if (issue.code !== 'invalid_union') return issue;
  const inner = issue.errors.flatMap((branch) => branch.slice(0, 1)).filter(({ path }) => path.length > 0);
  const [best] = inner.sort((a, b) => b.path.length - a.path.length);
  if (best === undefined) return issue;
  const found = deepest(best);
  return { ...found, path: [...issue.path, ...found.path] };
}

function messageFor(issue: z.core.$ZodIssue | undefined): string {
  if (issue === undefined) return 'not valid';
  return issue.message.replace(/^Invalid input: /, '');
}

/** messages[0].content */
function pathText(path: readonly PropertyKey[]): string {
  return path
    .map((key) => (typeof key === 'number' ? `[${key}]` : `.${String(key)}`))
    .join('')
    .replace(/^\./, '');
}
