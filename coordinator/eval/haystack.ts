/**
 * Needle tests made here: sentences of our own from a seeded generator, facts to find among them at given depths, and the
 * beginning of the sentence that must be completed. Any length; the same seed gives the same text.
 */
import { invariant } from '../../config/errors.ts';
import { seededRandom, type RandomSource } from '../sampler.ts';

const people = [
  'the baker',
  'a gardener',
  'the old sailor',
  'our neighbour',
  'a young teacher',
  'the clockmaker',
  'a passing farmer',
  'the librarian',
];
const actions = ['carried', 'repaired', 'painted', 'counted', 'sold', 'borrowed', 'described', 'forgot'];
const things = [
  'a wooden chair',
  'two baskets of apples',
  'the garden gate',
  'a bundle of letters',
  'the blue boat',
  'an iron kettle',
  'a map of the valley',
  'the broken lamp',
];
const places = [
  'beside the mill',
  'on the market square',
  'near the harbour',
  'behind the school',
  'along the river',
  'under the long bridge',
  'at the edge of the wood',
  'in front of the station',
];
const times = [
  'Early in the morning',
  'After the rain',
  'Before the first snow',
  'On a quiet Sunday',
  'Towards evening',
  'In the middle of May',
  'Long ago',
  'When the bells rang',
];
const cities = ['Harlow', 'Quimper', 'Tarbet', 'Umbria', 'Valmont', 'Winslow', 'Ystad', 'Zelten', 'Arden', 'Brixen'];

export interface Needle {
  /** A sentence. */
  readonly fact: string;
  /** Its beginning, without the answer. */
  readonly question: string;
  readonly answer: string;
}

export function needleOf(seed: number): Needle {
  const random = seededRandom(seed);
  const city = pick(cities, random);
  const answer = String(10_000 + Math.floor(random() * 90_000));
  const question = `The secret number of ${city} is`;
  return { fact: `${question} ${answer}.`, question, answer };
}

/** Sentences without end, none of which names a number or a city. */
export function* sentences(seed: number): Generator<string, never> {
  const random = seededRandom(seed);
  for (;;)
    yield `${pick(times, random)} ${pick(people, random)} ${pick(actions, random)} ${pick(things, random)} ${pick(places, random)}.`;
}

/**
 * Haystack with its needle, then the beginning of the needle again, as long as fits `tokens`.
 * @param depth 0: the needle is the first sentence, 1: the last  @param lengthOf tokens of a text
 */
export function promptOf(
  needle: Needle,
  depth: number,
  tokens: number,
  seed: number,
  lengthOf: (text: string) => number,
): string {
  const made = sentences(seed);
  const build = (hay: readonly string[]): string => {
    const at = Math.round(depth * hay.length);
    return `${[...hay.slice(0, at), needle.fact, ...hay.slice(at)].join(' ')}\n\n${needle.question}`;
  };
  const hay: string[] = [];
  // Sentences have about 15 tokens: counted exactly only near the end.
  const start = lengthOf(build(hay));
  while (start + 40 * (hay.length + 1) < tokens) hay.push(made.next().value);
  for (;;) {
    const longer = [...hay];
    const missing = tokens - lengthOf(build(hay));
    for (let i = 0; i < Math.max(1, Math.floor(missing / 40)); i++) longer.push(made.next().value);
    if (lengthOf(build(longer)) > tokens) return build(hay);
    hay.splice(0, hay.length, ...longer);
  }
}

function pick(words: readonly string[], random: RandomSource): string {
  const word = words[Math.floor(random() * words.length)];
  invariant(word !== undefined, 'a random number outside 0 to 1');
  return word;
}
