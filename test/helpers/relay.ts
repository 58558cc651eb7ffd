/** Somebody on the way between two processes: passes every byte on, and keeps a copy. */
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';

export interface Relay extends AsyncDisposable {
  readonly port: number;
  /** Of each connection so far, in order: what was sent towards the target. */
  readonly sent: () => readonly Buffer[];
  /** Everything that passed, both ways. */
  readonly all: () => Buffer;
}

/** @param target port of 127.0.0.1 */
export async function startRelay(target: number): Promise<Relay> {
  const connections: { there: Buffer[]; back: Buffer[] }[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(target, '127.0.0.1');
    const copy = { there: [] as Buffer[], back: [] as Buffer[] };
    connections.push(copy);
    pass(near, far, copy.there);
    pass(far, near, copy.back);
    for (const socket of [near, far]) sockets.add(socket);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  return {
    port: typeof address === 'object' && address !== null ? address.port : 0,
    sent: () => connections.map(({ there }) => Buffer.concat(there)),
    all: () => Buffer.concat(connections.flatMap(({ there, back }) => [...there, ...back])),
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

function pass(from: Socket, to: Socket, copy: Buffer[]): void {
  from.setNoDelay();
  from.on('data', (bytes) => {
    copy.push(bytes);
    to.write(bytes);
  });
  from.on('error', () => to.destroy());
  from.on('close', () => to.destroy());
}
