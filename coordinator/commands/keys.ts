/** `tpla keys`: makes the key pair of a cluster, which every machine gets a copy of. Read next: ../../collective/curve.ts. */
import type { Argv } from 'yargs';
import { writeKeys } from '../../collective/curve.ts';
import type { CommandContext } from '../command-context.ts';
import { jsonFlag } from '../flags.ts';

export function addKeysCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'keys',
    'make a CURVE key pair for a cluster of several machines',
    (command) =>
      jsonFlag(command).option('out', {
        type: 'string',
        default: './keys',
        describe: 'folder of the key file; a key file that is there already is kept and refused',
      }),
    async ({ out, json }) => {
      const path = await writeKeys(out);
      if (json) return context.write(`${JSON.stringify({ path })}\n`);
      context.write(`${path}\n`);
      context.log(
        'Copy it to every machine of the cluster, readable by its user alone: who has it can join and read everything.',
      );
    },
  );
}
