// Makes a fresh clone runnable: installs the locked dependencies if they are missing or changed, then compiles to dist/.
// Plain JavaScript without imports of ours, because nothing is installed or built when it runs.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const sourceFolders = ['config', 'model', 'collective', 'worker', 'coordinator', 'scripts'];

requireNode(20, 19);
const lockHash = hashOf(['package-lock.json']);
const installStamp = join(root, 'node_modules', '.tpla-installed');
if (readStamp(installStamp) !== lockHash) {
  run('npm', ['ci', '--no-audit', '--no-fund'], 'installing dependencies (once)');
  writeFileSync(installStamp, lockHash);
}
const sourceHash = hashOf([
  'package-lock.json',
  'tsconfig.json',
  'tsconfig.build.json',
  ...sourceFolders.flatMap(filesUnder),
]);
const buildStamp = join(root, 'dist', '.tpla-built');
if (readStamp(buildStamp) !== sourceHash) {
  rmSync(join(root, 'dist'), { recursive: true, force: true });
  run('npx', ['--no-install', 'tsc', '-p', 'tsconfig.build.json'], 'building dist/');
  mkdirSync(join(root, 'dist'), { recursive: true });
  // The web page is served as it is written: nothing of it is compiled.
  cpSync(join(root, 'coordinator', 'web'), join(root, 'dist', 'coordinator', 'web'), { recursive: true });
  writeFileSync(buildStamp, sourceHash);
}

function requireNode(major, minor) {
  const [haveMajor, haveMinor] = process.versions.node.split('.').map(Number);
  if (haveMajor > major || (haveMajor === major && haveMinor >= minor)) return;
  console.error(
    `tpla needs Node >= ${major}.${minor}, this is ${process.versions.node}; install a newer Node and run again`,
  );
  process.exit(2);
}

function filesUnder(folder) {
  return readdirSync(join(root, folder), { recursive: true })
    .map((name) => join(folder, String(name)))
    .filter((name) => statSync(join(root, name)).isFile())
    .sort();
}

function hashOf(names) {
  const hash = createHash('sha256');
  for (const name of names)
    hash
      .update(name)
      .update('\0')
      .update(readFileSync(join(root, name)));
  return hash.digest('hex');
}

function readStamp(path) {
  return existsSync(path) ? readFileSync(path, 'utf8') : '';
}

function run(command, args, doing) {
  console.error(`tpla: ${doing} ...`);
  const result = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2], shell: process.platform === 'win32' });
  if (result.status === 0) return;
  console.error(
    `tpla: ${doing} failed: \`${command} ${args.join(' ')}\` ended with ${result.status ?? result.signal ?? result.error}`,
  );
  process.exit(result.status ?? 1);
}
