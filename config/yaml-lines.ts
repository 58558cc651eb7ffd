/** Where a key of a parsed YAML document stands, for messages. */
import { isMap, isNode, isScalar, isSeq, type Document, type LineCounter } from 'yaml';

/** 1-based line of the deepest part of `path` that the document has; 1 when it has none. */
export function lineOfKey(document: Document | undefined, lines: LineCounter, path: readonly PropertyKey[]): number {
  let node: unknown = document?.contents;
  let offset = 0;
  for (const segment of path) {
    if (isMap(node)) {
      const pair = node.items.find((item) => isScalar(item.key) && String(item.key.value) === String(segment));
      if (pair === undefined) break;
      if (isNode(pair.key)) offset = pair.key.range?.[0] ?? offset;
      node = pair.value;
    } else if (isSeq(node) && typeof segment === 'number') {
      node = node.items[segment];
      if (isNode(node)) offset = node.range?.[0] ?? offset;
    } else break;
  }
  return lines.linePos(offset).line;
}
