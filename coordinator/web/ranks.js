/** What each rank holds, as a picture, and what it does: a card for each. A rank has one colour everywhere. */

const element = (id) => document.getElementById(id);
/** Colours that style.css knows. */
const colours = 8;
let drawnShards = '';

/** One bar for each thing that is cut over the ranks, as wide as each rank's part. */
export function drawShards({ ranks, scheme }) {
  const drawn = JSON.stringify([scheme, ranks.map(({ heads, kv_heads: kv, latent }) => [heads, kv, latent])]);
  if (drawn === drawnShards) return;
  drawnShards = drawn;
  const bars = [
    ['Query heads', 'heads'],
    ['Key-value heads', 'kv_heads'],
    ['Latent columns', 'latent'],
  ].filter(([, key]) => ranks.some((rank) => length(rank[key]) > 0));
  element('shards').replaceChildren(...bars.map(([name, key]) => bar(name, key, ranks)));
}

function bar(name, key, ranks) {
  const total = Math.max(...ranks.map((rank) => rank[key].end));
  const held = ranks.reduce((sum, rank) => sum + length(rank[key]), 0);
  const figure = make('div', 'shard');
  const list = make('ul');
  for (const rank of ranks) {
    const { start, end } = rank[key];
    const what = end - start > 1 ? `${start} to ${end - 1}` : end > start ? `${start}` : 'none';
    const item = make('li', colourOf(rank.rank));
    item.append(make('b', '', `rank ${rank.rank}`), ` ${what}`);
    item.title = `${name}, rank ${rank.rank}: ${what}`;
    item.style.flex = `${Math.max(end - start, 0.2)} 1 0`;
    list.append(item);
  }
  // Ranges that overlap are held more than once: all of a replicated latent, or a head that two ranks share.
  const shared =
    held === total ? '' : `, ${held === total * ranks.length ? 'all on every rank' : 'some on several ranks'}`;
  figure.append(make('p', '', `${name} (${total}${shared})`), list);
  return figure;
}

function length({ start, end }) {
  return Math.max(0, end - start);
}

export function drawRanks(ranks) {
  element('ranks').replaceChildren(...ranks.map(card));
}

function card(rank) {
  const item = make('li', `card ${colourOf(rank.rank)}`);
  const head = make('div', 'head');
  const state = make('span', 'pill', rank.state);
  state.dataset.state = rank.state;
  head.append(make('b', '', `Rank ${rank.rank}`), make('span', 'quiet', `${rank.host}, process ${rank.pid}`), state);
  item.append(head, load(rank), numbers(rank));
  if (rank.error !== undefined) item.append(make('p', 'error', rank.error));
  return item;
}

/** Where the last second went. */
function load({ rank, per_second: second }) {
  const computing = percent(second.compute_ms);
  const waiting = Math.min(100 - computing, percent(second.wait_ms));
  const meter = make('div', 'load');
  meter.setAttribute('role', 'img');
  meter.setAttribute('aria-label', `Rank ${rank}: computing ${computing} %, waiting ${waiting} %`);
  for (const [name, share] of [
    ['computing', computing],
    ['waiting', waiting],
  ]) {
    const part = make('span', name);
    part.style.width = `${share}%`;
    meter.append(part);
  }
  return meter;
}

function numbers({
  per_second: second,
  rss_bytes: memory,
  weight_bytes: weights,
  cache_bytes: cache,
  restarts,
  device,
}) {
  const list = make('dl', 'numbers');
  const entries = {
    computing: `${percent(second.compute_ms)} %`,
    waiting: `${percent(second.wait_ms)} %`,
    sent: `${bytes(second.bytes_sent)}/s`,
    received: `${bytes(second.bytes_received)}/s`,
    memory: bytes(memory),
    weights: bytes(weights),
    'full cache': bytes(cache),
    restarts: String(restarts),
  };
  for (const [name, value] of Object.entries(entries)) {
    const group = make('div');
    group.append(make('dt', '', name), make('dd', '', value));
    group.dataset.name = name;
    list.append(group);
  }
  list.title = device;
  return list;
}

function percent(msPerSecond) {
  return Math.min(100, Math.round(msPerSecond / 10));
}

function bytes(count) {
  for (const [name, unit] of [
    ['GB', 1e9],
    ['MB', 1e6],
    ['kB', 1e3],
  ])
    if (count >= unit) return `${(count / unit).toFixed(count < 100 * unit ? 1 : 0)} ${name}`;
  return `${Math.round(count)} B`;
}

function colourOf(rank) {
  return `colour-${rank % colours}`;
}

function make(name, className = '', text = '') {
  const node = document.createElement(name);
  if (className !== '') node.className = className;
  node.textContent = text;
  return node;
}
