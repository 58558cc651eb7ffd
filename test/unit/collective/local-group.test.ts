import { makeLocal } from '../../helpers/groups.ts';
import { describeProcessGroup } from '../../suites/process-group.ts';

describeProcessGroup('local group', makeLocal);
