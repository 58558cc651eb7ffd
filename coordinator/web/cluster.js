/**
 * The cluster view: asks once a second while the page is visible, and shows how the cluster does. What each rank holds
 * and does is drawn by ranks.js.
 */
import { drawRanks, drawShards } from './ranks.js';
import { get } from './server.js';

const element = (id) => document.getElementById(id);
const everyMs = 1000;
const keptSamples = 60;
const history = [];
let seenEvents = '';

const words = {
  ok: 'ready',
  unreachable: 'unreachable',
  locked: 'API key needed',
};

/** @param onCluster called with each answer of the server */
export async function watchCluster(onCluster) {
  for (;;) {
    if (document.visibilityState === 'visible') await look(onCluster);
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}

async function look(onCluster) {
  try {
    const cluster = await get('/v1/cluster');
    showState(cluster.state, bannerOf(cluster));
    draw(cluster);
    onCluster(cluster);
  } catch (error) {
    if (error.status === 401) showState('locked', error.message);
    else showState('unreachable', 'The server does not answer; this page goes on asking.');
  }
}

/** What the user should know wherever they look. */
function bannerOf({ state, error, events }) {
  if (state === 'failed') return error ?? 'The cluster has failed.';
  const lost = events.findLast(({ kind }) => kind === 'lost');
  if (state === 'recovering')
    return `${lost?.text ?? 'A rank was lost'}. It is being started again; answers go on after that.`;
  if (state === 'degraded') return 'The cluster runs on fewer ranks than it was given.';
  return '';
}

function showState(state, text) {
  const place = element('state');
  const banner = element('banner');
  if (banner.textContent !== text) banner.textContent = text;
  banner.dataset.state = state;
  if (place.dataset.state === state) return;
  place.dataset.state = state;
  place.textContent = words[state] ?? state;
}

function draw(cluster) {
  const { scheduler, rates, totals } = cluster;
  element('model').textContent = cluster.model;
  document.title = `${cluster.model} - tpla`;
  tiles('rates', {
    'tokens / s': rates.generated_tokens_per_second.toFixed(1),
    'prompt tokens / s': rates.prompt_tokens_per_second.toFixed(1),
    'running / slots': `${scheduler.running} / ${scheduler.slots}`,
    waiting: String(scheduler.queued),
    'tokens so far': totals.generated_tokens.toLocaleString('en'),
    'context tokens': cluster.context_tokens.toLocaleString('en'),
  });
  drawHistory(rates.generated_tokens_per_second);
  drawShards(cluster);
  const reason = cluster.scheme_reason === 'as asked' ? '' : ` (${cluster.scheme_reason})`;
  element('why').textContent = `Scheme ${cluster.scheme}${reason}, cache in ${cluster.cache_type}.`;
  drawRanks(cluster.ranks);
  drawEvents(cluster.events);
}

function tiles(id, entries) {
  element(id).replaceChildren(
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
  const peak = Math.max(...history);
  element('peak').textContent = peak > 0 ? `peak ${peak.toFixed(1)}` : 'nothing yet';
  const top = Math.max(1, peak);
  const points = history.map(
    (value, i) => `${(600 * (i + keptSamples - history.length)) / (keptSamples - 1)},${78 - (74 * value) / top}`,
  );
  const [start] = points[0].split(',');
  element('history').replaceChildren(
    shape('polygon', `${start},80 ${points.join(' ')} 600,80`),
    shape('polyline', points.join(' ')),
  );
}

function shape(name, points) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  node.setAttribute('points', points);
  return node;
}

function drawEvents(events) {
  const seen = JSON.stringify(events);
  if (seen === seenEvents) return;
  seenEvents = seen;
  element('events').replaceChildren(
    ...[...events].reverse().map(({ time, kind, rank, text }) => {
      const item = document.createElement('p');
      item.dataset.kind = kind;
      const where = rank === undefined || /^rank \d/.test(text) ? '' : `rank ${rank}, `;
      const when = withText('time', new Date(time).toLocaleTimeString());
      when.dateTime = time;
      item.append(when, ' ', withText('strong', `${kind}:`), ` ${where}${text}`);
      return item;
    }),
  );
}

function withText(name, text) {
  const node = document.createElement(name);
  node.textContent = text;
  return node;
}
