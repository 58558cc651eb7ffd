import { makeZeroMq } from '../../helpers/groups.ts';
import { describeProcessGroup } from '../../suites/process-group.ts';

describeProcessGroup('ZeroMQ ring', (worldSize, timeoutMs) => makeZeroMq(worldSize, timeoutMs, 'ring'));
describeProcessGroup('ZeroMQ direct', (worldSize, timeoutMs) => makeZeroMq(worldSize, timeoutMs, 'direct'));
describeProcessGroup('ZeroMQ auto over tcp', (worldSize, timeoutMs) =>
  makeZeroMq(worldSize, timeoutMs, 'auto', 'tcp://127.0.0.1:*'),
);
