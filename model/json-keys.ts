/**
 * Finds a key that occurs twice in one object of a JSON text. JSON.parse keeps the last value without a word, which
 * lets two programs read different tensors out of one file.
 */

const maxDepth = 64;

/**
 * @param text valid JSON: parse it first
 * @returns the first repeated key; undefined when all are unique. Objects nested deeper than 64 are not looked into.
 */
export function repeatedKey(text: string): string | undefined {
  const open: (Set<string> | undefined)[] = []; // a set of keys for an object, undefined for an array
  let keyNext = false;
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === '"') {
      const end = endOfString(text, at);
      const keys = open.at(-1);
      if (keyNext && keys !== undefined && open.length <= maxDepth) {
        const key = String(JSON.parse(text.slice(at, end)));
        if (keys.has(key)) return key;
        keys.add(key);
      }
      keyNext = false;
      at = end - 1;
    } else if (character === '{') {
      open.push(new Set());
      keyNext = true;
    } else if (character === '[') {
      open.push(undefined);
      keyNext = false;
    } else if (character === '}' || character === ']') {
      open.pop();
      keyNext = false;
    } else if (character === ',') keyNext = open.at(-1) !== undefined;
  }
  return undefined;
}

/** The position behind the closing quote of the string literal that opens at `start`. */
function endOfString(text: string, start: number): number {
  let at = start + 1;
  while (at < text.length && text[at] !== '"') at += text[at] === '\\' ? 2 : 1;
  return at + 1;
}
