import { makeSharedMemory } from '../../helpers/groups.ts';
import { describeProcessGroup } from '../../suites/process-group.ts';

// All ranks in one process here, so that every wait lasts until the event loop turns; real processes: test/cluster.
describeProcessGroup('shared memory', makeSharedMemory);
