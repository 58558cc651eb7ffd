import { expect, it } from 'vitest';
import { prepareText, windowsOfText, windowsOfTexts } from '../../../../coordinator/convert/calibration-text.ts';
import { windowsOfStream } from '../../../../coordinator/convert/own-text.ts';

const counts = { length: 10, calibration: 8, heldOut: 2 };
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

it('takes an equal share of several texts, in turn', () => {
  const texts = ['a', 'b'].map((name, i) => ({ name, ids: ids.map((id) => id + 5000 * i) }));
  const { windows, heldOut } = windowsOfTexts(texts, { length: 10, calibration: 5, heldOut: 2 });
  expect(windows.map(([first]) => first! >= 5000)).toEqual([false, true, false, true, true]);
  expect(heldOut.map(([first]) => first! >= 5000)).toEqual([false, true]);
  const [one, two] = [windowsOfTexts([texts[0]!], counts), windowsOfText(ids, counts, 'a')];
  expect(one).toEqual(two);
});

it('refuses more texts than windows', () => {
  const texts = ['a', 'b', 'c'].map((name) => ({ name, ids }));
  expect(() => windowsOfTexts(texts, { length: 10, calibration: 2, heldOut: 2 })).toThrow(
    'calibration: 3 files, but only 2 windows of 10 tokens to fit on; raise --calibration-tokens to at least 30, or give fewer files',
  );
});

it("refuses the model's own text beside files", async () => {
  await expect(prepareText({ calibration: ['self', 'a.txt'], text: null }, counts)).rejects.toThrow(
    "calibration: self, the model's own text, cannot be mixed with files, got self, a.txt",
  );
});

it('cuts windows of what the model wrote inside its texts, and uses every token once', () => {
  const stream = Array.from({ length: 120 }, (_, i) => i); // texts of 20 tokens
  const windows = windowsOfStream(stream, 20, { length: 40, calibration: 2, heldOut: 1 });
  expect(windows.map(([first]) => first)).toEqual([10, 50, 90]);
  expect(windows.flat().sort((a, b) => a - b)).toEqual(stream);
});
