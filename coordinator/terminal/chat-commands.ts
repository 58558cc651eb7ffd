/** What a line of a chat asks of the chat itself: `/help`, `/set temperature 0.7`. Pure. Read next: chat.ts. */
import type { Sampling } from '../sampler.ts';

export type ChatCommand =
  | { readonly kind: 'help' | 'exit' | 'clear' | 'again' | 'ranks' | 'settings' }
  /** undefined: none from now on. */
  | { readonly kind: 'system'; readonly text: string | undefined }
  | { readonly kind: 'set'; readonly name: SettingName; readonly value: number }
  | { readonly kind: 'mistake'; readonly message: string };

/** What of an answer may change between two of them. */
export type ChatSettings = Sampling & { readonly maxTokens: number; readonly seed: number | undefined };
export type SettingName = keyof ChatSettings;

/** By the names of the flags, with the flags' ranges. */
const settings: Readonly<Record<string, { name: SettingName; min: number; max: number; isWhole: boolean }>> = {
  temperature: { name: 'temperature', min: 0, max: 100, isWhole: false },
  'top-k': { name: 'topK', min: 0, max: 1_048_576, isWhole: true },
  'top-p': { name: 'topP', min: 0, max: 1, isWhole: false },
  'min-p': { name: 'minP', min: 0, max: 1, isWhole: false },
  'repeat-penalty': { name: 'repeatPenalty', min: 0.01, max: 100, isWhole: false },
  'max-tokens': { name: 'maxTokens', min: 1, max: 1_048_576, isWhole: true },
  seed: { name: 'seed', min: 0, max: 0xffffffff, isWhole: true },
};

export const chatHelp = `/help                this list
/exit                leave; so does Ctrl-D
/clear               forget the conversation
/again               another answer to the last message
/system [TEXT]       the system message from now on; without a text: none
/set                 show the settings
/set NAME VALUE      change one: ${Object.keys(settings).join(', ')}
/ranks               what each rank has done so far
"""                  begins and ends a message of several lines
Ctrl-C               stops an answer; empties the line; leaves where the line is empty
Up, Down             earlier messages`;

/** @returns undefined when the line is a message */
export function parseChatCommand(line: string): ChatCommand | undefined {
  const match = /^\/([a-z?]*)(?:\s+(.*))?$/s.exec(line.trim());
  if (match === null) return undefined;
  const [, name = '', rest = ''] = match;
  switch (name) {
    case 'help':
    case '?':
      return { kind: 'help' };
    case 'exit':
    case 'quit':
    case 'bye':
      return { kind: 'exit' };
    case 'clear':
    case 'again':
    case 'ranks':
      return { kind: name };
    case 'system':
      return { kind: 'system', text: rest === '' ? undefined : rest };
    case 'set':
      return rest === '' ? { kind: 'settings' } : parseSetting(rest.split(/\s+/));
    default:
      return { kind: 'mistake', message: `/${name}: no such command; /help lists them` };
  }
}

/** The settings as they are typed. */
export function describeSettings(values: ChatSettings): string {
  return Object.entries(settings)
    .map(([flag, { name }]) => `${flag} ${values[name] ?? 'random'}`)
    .join(', ');
}

function parseSetting([flag = '', text = '', ...more]: readonly string[]): ChatCommand {
  const setting = settings[flag];
  if (setting === undefined)
    return { kind: 'mistake', message: `/set: ${flag} is none of ${Object.keys(settings).join(', ')}` };
  const { name, min, max, isWhole } = setting;
  const value = Number(text);
  const isGood =
    text !== '' && more.length === 0 && value >= min && value <= max && (!isWhole || Number.isInteger(value));
  if (isGood) return { kind: 'set', name, value };
  const got = [text, ...more].join(' ');
  return {
    kind: 'mistake',
    message: `/set ${flag}: expected a ${isWhole ? 'whole ' : ''}number ${min} to ${max}, got ${JSON.stringify(got)}`,
  };
}
