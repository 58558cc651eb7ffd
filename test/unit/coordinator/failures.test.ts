import { describe, expect, test } from 'vitest';
import { ConfigError, InvariantError, PeerError } from '../../../config/errors.ts';
import type { Failed } from '../../../collective/messages.ts';
import { explainFailures, type RankFailure } from '../../../coordinator/failures.ts';

const said = (rank: number, error: Failed['error'], message: string): RankFailure => ({
  rank,
  pid: 100 + rank,
  failed: { kind: 'failed', rank, epoch: 0, id: 4, error, message },
});
const ended = (rank: number, code: number | null, signal: NodeJS.Signals | null, output = ''): RankFailure => ({
  rank,
  pid: 100 + rank,
  exit: { code, signal, output },
});

describe('explainFailures', () => {
  test('a process that was killed comes before those that miss it', () => {
    const missing = said(0, 'PeerError', 'rank 0: nothing from rank 1 for all-reduce #518 in 10000 ms');
    expect(explainFailures([missing, ended(1, null, 'SIGKILL')], 'during step 7')).toEqual(
      new PeerError(
        'rank 1 (process 101) was killed by SIGKILL (out of memory?) during step 7; it printed nothing\n' +
          '  then rank 0: nothing from rank 1 for all-reduce #518 in 10000 ms',
      ),
    );
  });

  test("a rank's own words count, not the exit that follows them", () => {
    const failure = {
      ...said(1, 'ConfigError', 'no device cuda7; use cpu'),
      exit: { code: 2, signal: null, output: 'x' },
    };
    expect(explainFailures([failure], 'while loading')).toEqual(new ConfigError('rank 1: no device cuda7; use cpu'));
  });

  test('a bug stays a bug', () => {
    const error = explainFailures(
      [said(0, 'PeerError', 'lost'), said(2, 'InvariantError', 'bad shape')],
      'while loading',
    );
    expect(error).toEqual(new InvariantError('rank 2: bad shape\n  then rank 0: lost'));
  });

  test('an exit shows the last lines that were printed, as one line', () => {
    const output = 'a\nb\n\nError: cannot find module\n    at x\n    at y\n';
    expect(explainFailures([ended(0, 1, null, output)], 'while starting')).toEqual(
      new PeerError(
        'rank 0 (process 100) exited with code 1 while starting; it printed last: b | Error: cannot find module | at x | at y',
      ),
    );
  });

  test('a late rank is named last', () => {
    const late = { rank: 0, pid: 100, late: 'no answer in 50 ms while loading; is it frozen or overloaded?' };
    expect(explainFailures([late, ended(1, 0, null)], 'while loading').message).toBe(
      'rank 1 (process 101) exited with code 0 while loading; it printed nothing\n' +
        '  then rank 0 (process 100): no answer in 50 ms while loading; is it frozen or overloaded?',
    );
  });
});
