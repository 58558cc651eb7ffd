/** `tpla fetch [name]`: the default model in the cache folder, whole and verified; prints its path. */
import type { Argv } from 'yargs';
import type { CommandContext } from '../command-context.ts';
import { fetchModel, namedModels, verifyFile } from '../fetch.ts';
import { jsonFlag } from '../flags.ts';

export function addFetchCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'fetch [name]',
    'download a model once (checksum verified, resumable) and print its path',
    (command) =>
      jsonFlag(
        command.positional('name', {
          type: 'string',
          default: 'default',
          describe: `one of ${Object.keys(namedModels).join(', ')}; TPLA_MODEL names a local file instead`,
        }),
      ),
    async ({ name, json }) => {
      const path = await fetchModel(name, context);
      const model = namedModels[name];
      const isLocal = (context.env['TPLA_MODEL'] ?? '') !== '';
      if (model !== undefined && !isLocal) await verifyFile(path, model);
      context.write(
        json ? `${JSON.stringify({ name, path, bytes: model?.bytes, sha256: model?.sha256 })}\n` : `${path}\n`,
      );
    },
  );
}
