// The other end of a control channel in its own process. `server`: binds, reports the endpoint, waits to be killed.
// `last-word ENDPOINT`: says hello and that it failed, and ends at once.
import { protocolVersion } from '../../dist/collective/messages.js';
import { ControlServer } from '../../dist/collective/control.js';
import { ControlClient } from '../../dist/collective/control-client.js';

const [mode, endpoint] = process.argv.slice(2);
if (mode === 'server') {
  const server = await ControlServer.bind('ipc');
  process.send(server.endpoint);
  await server.receive();
} else {
  const client = await ControlClient.connect(endpoint, 0);
  const hello = { rank: 0, pid: process.pid, host: 'h', protocol: protocolVersion, version: '0', token: 't' };
  await client.send({ kind: 'hello', ...hello, ringEndpoint: 'r', ringKey: '' });
  await client.send({ kind: 'failed', rank: 0, epoch: 0, id: null, error: 'PeerError', message: 'the last word' });
  await client[Symbol.asyncDispose]();
  if (mode === 'last-word-exit') process.exit(3);
}
