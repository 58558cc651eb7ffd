/**
 * One measurement of llama.cpp through node-llama-cpp, which compare-llama.ts starts where somebody has installed it. Plain
 * JavaScript, because its types are not here. Prints one line of JSON: milliseconds of CPU and of the clock.
 *   node llama-peer.mjs FOLDER MODEL CONTEXT STEPS THREADS
 */
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, modelPath, context, steps, threads] = process.argv.slice(2);
const { getLlama } = await import(
  pathToFileURL(join(resolve(folder), 'node_modules/node-llama-cpp/dist/index.js')).href
);
const llama = await getLlama({ build: 'never', gpu: false, maxThreads: Number(threads), logLevel: 'error' });
const model = await llama.loadModel({ modelPath });
const session = await model.createContext({
  contextSize: Number(context) + 2 * Number(steps) + 64,
  batchSize: 512,
  threads: Number(threads),
  flashAttention: true,
});
const sequence = session.getSequence();
const tokens = Array.from({ length: Number(context) }, (_, i) => (i % 400) + 300);

const cpuMs = (since) => {
  const { user, system } = process.cpuUsage(since);
  return (user + system) / 1000;
};

const prefills = [];
for (let i = 0; i < 3; i++) {
  await sequence.clearHistory();
  const [wall, cpu] = [performance.now(), process.cpuUsage()];
  await sequence.evaluateWithoutGeneratingNewTokens(tokens);
  prefills.push({ cpuMs: cpuMs(cpu), wallMs: performance.now() - wall });
}

const decodes = [];
let token = 100;
for (let i = 0; i < Number(steps); i++) {
  const [wall, cpu] = [performance.now(), process.cpuUsage()];
  for await (const next of sequence.evaluate([token], { temperature: 0 })) {
    token = next;
    break;
  }
  decodes.push({ cpuMs: cpuMs(cpu), wallMs: performance.now() - wall });
}
process.stdout.write(`${JSON.stringify({ prefills, decodes })}\n`);
process.exit(0);
