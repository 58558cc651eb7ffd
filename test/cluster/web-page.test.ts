/**
 * The web page in a real Chromium: a message streams and is stopped, a killed rank is told and recovers, no console
 * error, no serious finding of axe-core. Skipped where there is no Chromium. With TPLA_SCREENSHOTS=1 and
 * TPLA_MODEL naming a converted model the pictures of docs/screenshots are made again.
 */
import { fileURLToPath } from 'node:url';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { chromiumPath, launchChromium, openPage, seriousFindings } from '../helpers/browser.ts';
import { realModelPath } from '../helpers/real-model.ts';
import { serve, type Served } from '../helpers/serving.ts';

const screenshots = fileURLToPath(new URL('../../docs/screenshots/', import.meta.url));
const takesScreenshots = process.env['TPLA_SCREENSHOTS'] === '1';

describe.skipIf(chromiumPath === undefined)('web page', () => {
  let served: Served;
  let browser: Browser;

  beforeAll(async () => {
    const model = takesScreenshots ? realModelPath() : undefined;
    const scheme = takesScreenshots ? ['--scheme', 'tpla'] : [];
    served = await serve(['--ranks', '2', ...scheme], model === undefined ? {} : { model });
    browser = await launchChromium();
  });
  afterAll(async () => {
    await browser?.close();
    await served?.[Symbol.asyncDispose]();
  });

  /** A fresh page, and everything that its console said of errors, other hosts' requests included. */
  async function open(options: Parameters<Browser['newPage']>[0] = {}): Promise<{ page: Page; errors: string[] }> {
    const { page, errors } = await openPage(browser, served.url, served.url, options);
    await page.locator('#state[data-state=ok]').waitFor();
    return { page, errors };
  }

  test('sends a message with the keyboard, streams the answer, stops it', async () => {
    const { page, errors } = await open();
    await page.locator('#settings summary').click();
    await page.locator('#max-tokens').fill('400');
    await page.locator('#temperature').fill('0');
    await page.locator('#message').fill('Once upon a time');
    await page.locator('#message').press('Enter');
    const answer = page.locator('#messages > div').nth(1);
    await expect.poll(async () => (await answer.textContent())?.length ?? 0, { timeout: 20_000 }).toBeGreaterThan(30);
    expect(await page.locator('#messages').getAttribute('aria-busy')).toBe('true');
    await page.locator('#stop').click();
    await expect.poll(() => page.locator('#messages').getAttribute('aria-busy')).toBe('false');
    const stopped = await answer.textContent();
    await expect
      .poll(async () => {
        const cluster: unknown = await (await fetch(`${served.url}/v1/cluster`)).json();
        return cluster;
      })
      .toMatchObject({ scheduler: { running: 0, queued: 0 } });
    expect(await answer.textContent()).toBe(stopped);
    expect(await page.locator('#message').isEnabled()).toBe(true);
    expect(errors).toEqual([]);
    await page.close();
  });

  test('from an empty chat by a suggestion, another answer, and an empty chat again', async () => {
    const { page, errors } = await open({ reducedMotion: 'reduce' });
    expect(await page.locator('#stop').isVisible()).toBe(false);
    await page.locator('#max-tokens').evaluate((field) => field.setAttribute('value', '8'));
    await page.locator('.suggestion').first().click();
    const foot = page.locator('#messages .assistant .foot');
    await expect
      .poll(() => foot.textContent(), { timeout: 20_000 })
      .toMatch(/^8 tokens, .* per second, first after .* s, cut/);
    expect(await page.locator('#welcome').count()).toBe(0);
    await page.locator('#again').click();
    await expect.poll(() => foot.textContent(), { timeout: 20_000 }).toMatch(/^8 tokens/);
    expect(await page.locator('#messages > div').count()).toBe(2);
    await page.locator('#clear').click();
    expect(await page.locator('#welcome').isVisible()).toBe(true);
    expect(await page.evaluate<string>('document.activeElement.id')).toBe('message');
    // What the server refuses stands beside the message.
    await page.locator('#message').fill('x'.repeat(5000));
    await page.locator('#message').press('Enter');
    await expect.poll(() => page.locator('#notice').textContent()).toContain('maximum context length is 512');
    // The browser itself reports an answer of 400.
    expect(errors.filter((line) => !line.includes('status of 400'))).toEqual([]);
    await page.close();
  });

  test('says when the server is gone, and when it is back', async () => {
    const { page } = await open();
    await page.context().setOffline(true);
    await page.locator('#state[data-state=unreachable]').waitFor();
    expect(await page.locator('#banner').textContent()).toContain('does not answer');
    await page.context().setOffline(false);
    await page.locator('#state[data-state=ok]').waitFor();
    await page.close();
  });

  test.each([
    ['light', 1440, 900],
    ['dark', 1440, 900],
    ['light', 400, 800],
    ['dark', 400, 800],
  ] as const)(
    '%s at %i x %i: both views, nothing serious for axe',
    { timeout: 120_000 },
    async (colorScheme, width, height) => {
      const { page, errors } = await open({ colorScheme, viewport: { width, height } });
      await page.locator('#settings summary').click();
      expect(await seriousFindings(page)).toEqual([]);
      await page.locator('#settings summary').click();
      const shape = `${colorScheme}-${width > 1000 ? 'wide' : 'narrow'}`;
      if (takesScreenshots) {
        await page.locator('#message').fill('Why is the sky blue?');
        await page.locator('#max-tokens').evaluate((field) => field.setAttribute('value', '60'));
        await page.locator('#message').press('Enter');
        await expect
          .poll(() => page.locator('#messages').getAttribute('aria-busy'), { timeout: 100_000 })
          .toBe('false');
        await page.locator('#history polyline').waitFor({ state: 'attached' });
        await page.screenshot({ path: `${screenshots}${shape}-chat.png` });
      }
      if (width < 1000) {
        await page.locator('#tab-chat').press('ArrowRight');
        expect(await page.locator('#cluster').isVisible()).toBe(true);
        expect(await page.locator('#chat').isVisible()).toBe(false);
        expect(await seriousFindings(page)).toEqual([]);
        if (takesScreenshots) await page.screenshot({ path: `${screenshots}${shape}-cluster.png` });
      }
      expect(await page.locator('#ranks > li').count()).toBe(2);
      expect(await page.locator('#shards').textContent()).toContain('rank 1 ');
      expect(await page.locator('#ranks .load').nth(1).getAttribute('aria-label')).toMatch(/^Rank 1: computing \d+ %/);
      const overflow = await page.evaluate<boolean>(
        'document.documentElement.scrollWidth > document.documentElement.clientWidth',
      );
      expect(overflow).toBe(false);
      expect(errors).toEqual([]);
      await page.close();
    },
  );

  test('tells of a killed rank and of its recovery', async () => {
    const { page, errors } = await open();
    const { pid } = served.ranks[1]!;
    process.kill(pid, 'SIGKILL');
    const events = page.locator('#events');
    await expect
      .poll(() => events.textContent(), { timeout: 15_000 })
      .toContain(`lost: rank 1 (process ${pid}) was killed`);
    await expect.poll(() => events.textContent(), { timeout: 15_000 }).toContain('recovered: rank 1');
    await page.locator('#state[data-state=ok]').waitFor();
    expect(await page.locator('#banner').textContent()).toBe('');
    expect(await page.locator('#ranks > li').nth(1).locator('[data-name=restarts] dd').textContent()).toBe('1');
    await page.locator('#message').fill('The dog');
    await page.locator('#send').click();
    await expect
      .poll(() => page.locator('#messages > div').nth(1).textContent(), { timeout: 15_000 })
      .toMatch(/Model.{10}/s);
    expect(errors).toEqual([]);
    await page.close();
  });
});
