import { expect, it } from 'vitest';
import { windowsOfText } from '../../../../coordinator/convert/calibration-text.ts';
import { windowsOfStream } from '../../../../coordinator/convert/own-text.ts';

const ids = Array.from({ length: 1005 }, (_, i) => i);

it('spreads windows over the text and holds some of them out', () => {
  const { windows, heldOut } = windowsOfText(ids, { length: 10, calibration: 8, heldOut: 2 }, 'a.txt');
  expect(windows.map(([first]) => first)).toEqual([0, 100, 200, 300, 500, 600, 700, 800]);
  expect(heldOut.map(([first]) => first)).toEqual([400, 900]);
  for (const window of [...windows, ...heldOut]) {
    expect(window).toEqual(Array.from({ length: 10 }, (_, i) => window[0]! + i));
  }
});

it('uses a text that is just long enough', () => {
  const { windows, heldOut } = windowsOfText(ids, { length: 100, calibration: 9, heldOut: 1 }, 'a.txt');
  expect([...windows, ...heldOut].flat().sort((a, b) => a - b)).toEqual(ids.slice(0, 1000));
});

it('says how much text is missing', () => {
  expect(() => windowsOfText(ids, { length: 100, calibration: 9, heldOut: 2 }, 'a.txt')).toThrow(
    'calibration: a.txt has 1005 tokens, expected at least 1100 = 9 windows to fit on and 2 to judge by, 100 tokens each; give a longer text or lower --calibration-tokens',
  );
});

it('cuts windows of what the model wrote inside its texts, and uses every token once', () => {
  const stream = Array.from({ length: 120 }, (_, i) => i); // texts of 20 tokens
  const windows = windowsOfStream(stream, 20, { length: 40, calibration: 2, heldOut: 1 });
  expect(windows.map(([first]) => first)).toEqual([10, 50, 90]);
  expect(windows.flat().sort((a, b) => a - b)).toEqual(stream);
});
