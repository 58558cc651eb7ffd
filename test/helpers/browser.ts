/** A real Chromium for tests of pages; where none is installed they are skipped. */
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { chromium, type Browser, type Page } from 'playwright-core';

/** undefined: none is installed. */
export const chromiumPath = [
  process.env['CHROMIUM'],
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
].find((path) => path !== undefined && existsSync(path));

const flags = [
  '--no-sandbox',
  '--headless',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];
const axePath = createRequire(import.meta.url).resolve('axe-core/axe.min.js');

if (chromiumPath === undefined) console.warn('pages: skipped, no Chromium is installed (set CHROMIUM to its path)');

export function launchChromium(): Promise<Browser> {
  return chromium.launch({ ...(chromiumPath === undefined ? {} : { executablePath: chromiumPath }), args: flags });
}

/**
 * A fresh page at the address, and everything that went wrong since: errors of its console and scripts, and requests that
 * leave `home`.
 */
export async function openPage(
  browser: Browser,
  url: string,
  home: string,
  options: Parameters<Browser['newPage']>[0] = {},
): Promise<{ page: Page; errors: string[] }> {
  const page = await browser.newPage(options);
  const errors: string[] = [];
  page.on('console', (message) => {
    if (message.type() === 'error') errors.push(message.text());
  });
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('request', (request) => {
    if (!request.url().startsWith(home)) errors.push(`asked another host: ${request.url()}`);
  });
  await page.goto(url);
  return { page, errors };
}

/** What axe-core finds serious or critical. */
export async function seriousFindings(page: Page): Promise<string[]> {
  // A page's own policy may let no foreign script in, so axe comes by the debugger.
  await page.evaluate(readFileSync(axePath, 'utf8'));
  const findings = await page.evaluate<{ impact: string; id: string; targets: string }[]>(
    `axe.run().then(({ violations }) => violations.map(({ impact, id, nodes }) =>
        ({ impact, id, targets: nodes.map((node) => node.target.join(' ')).join(', ') })))`,
  );
  return findings
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .map(({ id, targets }) => `${id}: ${targets}`);
}
