// One rank in its own process, driven by collective-processes.ts: answers each {id, action, ...arguments} with
// {id, value | error, stats}. Imports the build, because Node 20 does not run TypeScript.
import { ringEndpointBeside } from '../../dist/collective/endpoint.js';
import { createSharedMemoryGroup, mapSegment } from '../../dist/collective/shared-memory.js';
import { TwoLevelGroup } from '../../dist/collective/two-level-group.js';
import { bindRing } from '../../dist/collective/zeromq-group.js';

let ring = null;
let bootstrap = null;
let group = null;

const actions = {
  async bind({ controlEndpoint, rank }) {
    ring ??= await bindRing(await ringEndpointBeside(controlEndpoint, rank));
    return ring.endpoint;
  },
  async join({ transport, settings, runId, hosts }) {
    const algorithm = transport === 'ring' || transport === 'direct' ? transport : 'auto';
    bootstrap = await ring.join({ ...settings, algorithm });
    group = bootstrap;
    if (transport === 'shm') group = await createSharedMemoryGroup({ ...settings, runId, bootstrap });
    if (transport === 'two levels') group = await twoLevels({ ...settings, runId, bootstrap }, hosts);
  },
  async allReduceSum({ buffer, label, payload }) {
    await group.allReduceSum(buffer, label, payload);
    return buffer;
  },
  async allGather({ part, lengths, out, label }) {
    await group.allGather(part, lengths, out, label);
    return out;
  },
  async broadcast({ buffer, root, label }) {
    await group.broadcast(buffer, root, label);
    return buffer;
  },
  async barrier({ label }) {
    await group.barrier(label);
  },
  async dispose() {
    await group?.[Symbol.asyncDispose]();
    await bootstrap?.[Symbol.asyncDispose]();
  },
  async end() {
    await ring?.[Symbol.asyncDispose]();
    process.disconnect();
  },
};

async function twoLevels(settings, hosts) {
  const { rank, timeoutMs, bootstrap } = settings;
  const ranks = hosts.flatMap((host, of) => (host === hosts[rank] ? [of] : []));
  const segment = await mapSegment(settings, ranks);
  return new TwoLevelGroup({ hosts, timeoutMs, mailbox: bootstrap.mailbox, segment });
}

async function answer({ id, action, ...args }) {
  const reply = { id };
  try {
    reply.value = await actions[action](args);
  } catch (error) {
    reply.error = { name: error.name, message: error.message };
  }
  if (group) reply.stats = { ...group.stats };
  if (process.connected) process.send(reply);
}

process.on('message', (request) => void answer(request));
