// Two answers at once from two ranks of this machine: node generate.mjs [MODEL]
import { startCluster } from 'tpla';

const cluster = await startCluster({ model: process.argv[2] ?? 'default', ranks: 2, log: console.error });
try {
  console.error(`scheme ${cluster.scheme}, ranks ${cluster.ranks.map(({ pid }) => pid).join(', ')}`);
  const prompts = ['Once upon a time', 'The dog'];
  const answers = prompts.map(async (prompt) => {
    let answer = '';
    for await (const event of cluster.generate({ prompt, maxTokens: 16 })) {
      answer += event.text;
      if (event.kind === 'end')
        console.error(`${prompt}: ${event.finishReason}, ${event.usage.generatedTokens} tokens`);
    }
    return prompt + answer;
  });
  for (const text of await Promise.all(answers)) console.log(JSON.stringify(text));
} finally {
  await cluster.stop();
}
