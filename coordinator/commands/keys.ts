/** `tpla keys`: makes the key pair of a cluster, and one of its own for each machine. Read next: ../../collective/key-files.ts. */
import { join } from 'node:path';
import type { Argv } from 'yargs';
import { authorizedFileName, writeKeys, writeMachineKeys } from '../../collective/key-files.ts';
import type { CommandContext } from '../command-context.ts';
import { jsonFlag } from '../flags.ts';

export function addKeysCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'keys',
    'make a CURVE key pair for a cluster of several machines',
    (command) =>
      jsonFlag(command)
        .option('out', {
          type: 'string',
          default: './keys',
          describe: "the coordinator's folder of keys; a key file that is there already is kept and refused",
        })
        .option('for', {
          type: 'string',
          describe: 'name of a machine that may join from now on: makes a key for it alone (default: the cluster key)',
        }),
    async ({ out, for: machine, json }) => {
      const path = machine === undefined ? await writeKeys(out) : await writeMachineKeys(out, machine);
      if (json) return context.write(`${JSON.stringify({ path })}\n`);
      context.write(`${path}\n`);
      context.log(machine === undefined ? clusterAdvice : machineAdvice(out, machine));
    },
  );
}

const clusterAdvice =
  'It stays with the coordinator; make one for each machine that joins with `tpla keys --for NAME`. Or copy it to every ' +
  'machine, readable by its user alone: who has it can join, read everything, and pass for the coordinator.';

function machineAdvice(folder: string, machine: string): string {
  const list = join(folder, authorizedFileName);
  return `Move it to ${machine} as ./keys/machine.key, readable by its user alone. To shut ${machine} out, remove its line from ${list}.`;
}
