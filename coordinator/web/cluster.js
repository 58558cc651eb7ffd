/** The cluster view: asks once a second while the page is visible, and shows what each rank holds and does. */
import { get } from './server.js';

const element = (id) => document.getElementById(id);
const everyMs = 1000;
const keptSamples = 60;
const history = [];
let seenEvents = '';
let drawnShards = '';

/** @param onCluster called with each answer of the server */
export async function watchCluster(onCluster) {
  for (;;) {
    if (document.visibilityState === 'visible') {
      try {
        const cluster = await get('/v1/cluster');
        element('cluster-error').textContent = cluster.error ?? '';
        showState(cluster.state);
        draw(cluster);
        onCluster(cluster);
      } catch (error) {
        showState('unreachable');
        element('cluster-error').textContent = error.message;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}

function showState(state) {
  const place = element('state');
  if (place.dataset.state === state) return;
  place.dataset.state = state;
  place.textContent = state === 'ok' ? 'ready' : state;
}

function draw(cluster) {
  element('model').textContent = cluster.model;
  const { scheduler, rates } = cluster;
  facts({
    Scheme: cluster.scheme,
    Why: cluster.scheme_reason,
    Context: `${cluster.context_tokens} tokens, cache ${cluster.cache_type}`,
    Running: `${scheduler.running} of ${scheduler.slots} slots, ${scheduler.queued} waiting`,
    Generated: `${cluster.totals.generated_tokens} tokens, ${perSecond(rates.generated_tokens_per_second)}`,
    'Prompts read': `${cluster.totals.prompt_tokens} tokens, ${perSecond(rates.prompt_tokens_per_second)}`,
  });
  drawHistory(rates.generated_tokens_per_second);
  drawShards(cluster.ranks);
  element('ranks').replaceChildren(...cluster.ranks.map(row));
  drawEvents(cluster.events);
}

function facts(entries) {
  element('facts').replaceChildren(
    ...Object.entries(entries).map(([name, value]) => {
      const group = document.createElement('div');
      group.append(withText('dt', name), withText('dd', value));
      return group;
    }),
  );
}

function drawHistory(rate) {
  history.push(rate);
  if (history.length > keptSamples) history.shift();
  element('rate').textContent = rate.toFixed(1);
  const top = Math.max(1, ...history);
  const points = history.map(
    (value, i) => `${(600 * (i + keptSamples - history.length)) / (keptSamples - 1)},${78 - (74 * value) / top}`,
  );
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'polyline');
  line.setAttribute('points', points.join(' '));
  element('history').replaceChildren(line);
}

/** One bar for each thing that is cut over the ranks, as wide as each rank's part. */
function drawShards(ranks) {
  const drawn = JSON.stringify(ranks.map(({ heads, kv_heads: kvHeads, latent }) => [heads, kvHeads, latent]));
  if (drawn === drawnShards) return;
  drawnShards = drawn;
  const bars = [
    ['Query heads', 'heads'],
    ['Key-value heads', 'kv_heads'],
    ['Latent columns', 'latent'],
  ].filter(([, key]) => ranks.some((rank) => rank[key].end > rank[key].start));
  element('shards').replaceChildren(
    ...bars.map(([name, key]) => {
      const bar = document.createElement('div');
      bar.className = 'shard';
      const list = document.createElement('ul');
      for (const rank of ranks) {
        const { start, end } = rank[key];
        const text = end > start ? `rank ${rank.rank}: ${start} to ${end - 1}` : `rank ${rank.rank}: none`;
        const item = withText('li', text);
        item.title = `${name}, ${text}`;
        item.style.flex = `${Math.max(end - start, 0.2)} 1 0`;
        list.append(item);
      }
      bar.append(withText('p', name), list);
      return bar;
    }),
  );
}

function row(rank) {
  const line = document.createElement('tr');
  const name = withText('th', String(rank.rank));
  name.scope = 'row';
  const state = withText('td', rank.state);
  state.className = 'state';
  state.dataset.state = rank.state;
  line.append(
    name,
    state,
    withText('td', rank.host),
    withText('td', String(rank.pid)),
    share(`Rank ${rank.rank} compute`, rank.per_second.compute_ms),
    share(`Rank ${rank.rank} wait`, rank.per_second.wait_ms),
    withText('td', `${bytes(rank.per_second.bytes_sent)}/s`),
    withText('td', `${bytes(rank.per_second.bytes_received)}/s`),
    withText('td', bytes(rank.rss_bytes)),
    withText('td', bytes(rank.weight_bytes)),
    withText('td', bytes(rank.cache_bytes)),
    withText('td', String(rank.restarts)),
  );
  return line;
}

/** Part of the time, as a meter and in percent. */
function share(label, msPerSecond) {
  const cell = document.createElement('td');
  const meter = document.createElement('meter');
  meter.max = 1000;
  meter.value = Math.min(1000, msPerSecond);
  meter.setAttribute('aria-label', label);
  cell.append(meter, ` ${Math.round(msPerSecond / 10)} %`);
  return cell;
}

function drawEvents(events) {
  const seen = JSON.stringify(events);
  if (seen === seenEvents) return;
  seenEvents = seen;
  element('events').replaceChildren(
    ...[...events].reverse().map(({ time, kind, rank, text }) => {
      const where = rank === undefined ? '' : `rank ${rank}, `;
      return withText(
        'p',
        `${new Date(time).toLocaleTimeString()} ${kind}: ${/^rank \d/.test(text) ? '' : where}${text}`,
      );
    }),
  );
}

function withText(name, text) {
  const node = document.createElement(name);
  node.textContent = text;
  return node;
}

function perSecond(rate) {
  return `${rate.toFixed(1)}/s`;
}

function bytes(count) {
  for (const [name, unit] of [
    ['GB', 1e9],
    ['MB', 1e6],
    ['kB', 1e3],
  ])
    if (count >= unit) return `${(count / unit).toFixed(1)} ${name}`;
  return `${Math.round(count)} B`;
}
