#!/usr/bin/env node
/**
 * The program: parses the command line, runs one command, turns its error into a line and an exit code (0 done, 2 the
 * user can fix it, 3 a peer process failed, 70 our bug). Read next: commands/run.ts, ../config/load.ts, cluster.ts.
 */
import { setFlagsFromString } from 'node:v8';
import yargs, { type Argv } from 'yargs';
import { hideBin } from 'yargs/helpers';
import { ConfigError, PeerError } from '../config/errors.ts';
import { packageVersion } from '../config/version.ts';
import { Interruption, processContext, type CommandContext } from './command-context.ts';
import { addBenchCommand } from './commands/bench.ts';
import { addConvertCommand } from './commands/convert.ts';
import { addDemoCommand } from './commands/demo.ts';
import { addDoctorCommand } from './commands/doctor.ts';
import { addEvalCommand } from './commands/eval.ts';
import { addFaultsCommand } from './commands/faults.ts';
import { addFetchCommand } from './commands/fetch.ts';
import { addInspectCommand } from './commands/inspect.ts';
import { addKeysCommand } from './commands/keys.ts';
import { addPlanCommand } from './commands/plan.ts';
import { addRotateCommand } from './commands/rotate.ts';
import { addRunCommand } from './commands/run.ts';
import { addServeCommand } from './commands/serve.ts';
import { addWorkerCommand } from './commands/worker.ts';

/** One file in commands/ each. */
const commands = [
  addDemoCommand,
  addRunCommand,
  addServeCommand,
  addWorkerCommand,
  addKeysCommand,
  addPlanCommand,
  addInspectCommand,
  addFetchCommand,
  addBenchCommand,
  addEvalCommand,
  addDoctorCommand,
  addFaultsCommand,
  addConvertCommand,
  addRotateCommand,
];

/** Of InvariantError, and of any error that is none of ours. */
const bugExitCode = 70;

/** Flags that may be given several times, and what is no flag. Before the call: main runs while this module is still being read. */
const listFlags: ReadonlySet<string> = new Set(['_', 'stop', 'without', 'calibration']);

/**
 * Logits arrive in memory outside of JavaScript's heap, and a heap of 12 MB is collected whenever 8 MB more have come: every
 * 2 steps of 16 sequences. This lets it grow to four times its size, a third as often.
 */
setFlagsFromString('--heap-growing-percent=300');

process.exitCode = await main(hideBin(process.argv), processContext());

/** @returns the exit code */
async function main(args: readonly string[], context: CommandContext): Promise<number> {
  const program = programFor(args, context);
  try {
    await program.parseAsync();
    return 0;
  } catch (error) {
    return explain(error, context);
  }
}

function programFor(args: readonly string[], context: CommandContext): Argv {
  const program = yargs([...args])
    .scriptName('tpla')
    .usage('$0 <command>: language models over several processes, the latent KV cache sharded across them')
    // Without duplicate-arguments-array a list such as --stop would keep its last value only.
    .parserConfiguration({ 'duplicate-arguments-array': true, 'greedy-arrays': false, 'boolean-negation': false })
    .middleware(refuseRepeats, true)
    .strict()
    .demandCommand(1, 'name a command')
    .recommendCommands()
    .version(packageVersion)
    .help()
    .wrap(120)
    .fail((message, error) => {
      // Without an error, or with one of its own, yargs refuses the command line; any other comes from a command.
      if (error === undefined || error === null || error.name === 'YError') throw usageMistake(message, args);
      throw error;
    })
    .exitProcess(false);
  return commands.reduce((built, add) => add(built, context), program);
}

function explain(error: unknown, context: CommandContext): number {
  if (error instanceof Interruption) return error.exitCode;
  if (error instanceof ConfigError || error instanceof PeerError) {
    context.log(`tpla: ${error.message}`);
    return error.exitCode;
  }
  context.log(`tpla: this is a bug: ${error instanceof Error ? error.stack : String(error)}`);
  return bugExitCode;
}

/** A flag with one value that was given several times: which of them is meant cannot be known. */
function refuseRepeats(flags: Readonly<Record<string, unknown>>): void {
  for (const [name, value] of Object.entries(flags))
    if (Array.isArray(value) && !listFlags.has(name))
      throw new ConfigError(`--${name}: given ${value.length} times; give it once`);
}

/** yargs' message in one line, with where help is. */
function usageMistake(message: string, args: readonly string[]): ConfigError {
  const command = args.find((arg) => !arg.startsWith('-'));
  const help = command === undefined ? 'tpla --help' : `tpla ${command} --help`;
  return new ConfigError(`${message.replaceAll('\n', ' ').trim()}; see ${help}`);
}
