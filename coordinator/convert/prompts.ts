/**
 * Beginnings of texts, for calibrating a model on what it writes itself: one model's own continuations of them, in
 * several registers, excite its keys and values about as ordinary text does. Only the first words are ours.
 * Read next: calibration-text.ts.
 */

/** In the order of use: the registers alternate, so that a few windows already cover most of them. */
export const calibrationPrompts: readonly string[] = [
  'The lighthouse at the mouth of the estuary was completed in 1887 after nine years of construction. Its architect, who had previously designed two railway stations, chose local granite because',
  'COUNCIL VOTES TO KEEP MARKET HALL OPEN\n\nAfter a debate that lasted until midnight on Tuesday, members of the town council agreed to fund repairs to the roof of the market hall. The mayor said',
  'Nobody in the village had ever seen the river freeze before, and so when Ilse woke to silence instead of running water, she put on both of her coats and went down the hill to look.',
  '"You promised you would be here by six," Marta said, without turning round from the stove.\n\n"I know. The bridge was closed and I had to',
  'def merge_intervals(intervals):\n    """Return the union of overlapping intervals as a sorted list of (start, end) pairs."""\n    result = []\n',
  'Problem. A farmer sells apples in boxes of 12 and pears in boxes of 8. On Monday she sold 27 boxes and 276 pieces of fruit in all. How many boxes of each kind did she sell?\n\nSolution. Let',
  'Dear Professor Hallam,\n\nThank you for your letter of the 3rd and for the photographs of the manuscript. I have compared the handwriting with the two pages we hold here, and',
  'The common kestrel is a small bird of prey found across Europe, Asia and Africa. It hunts mainly by hovering over open ground. Males and females differ in',
  'Shares of shipping companies fell for a third day on Thursday as fuel prices rose and two of the largest ports reported delays. Analysts at',
  'The old clockmaker had only one rule: never wind a clock that you have not listened to first. His apprentice, who was eleven and impatient, broke it on the very first morning, and',
  'Interviewer: You began as a chemist. What made you turn to the history of food?\n\nDr. Osei: Two things, really. The first was',
  '// A fixed-size ring buffer of bytes, safe for one reader and one writer.\n#include <stddef.h>\n\nstruct ring {\n    unsigned char *data;\n    size_t capacity;\n',
  'Theorem. Every continuous function on a closed and bounded interval attains its maximum.\n\nProof. Let f be continuous on [a, b]. We first show that f is bounded.',
  'Hello Jonas, sorry for the late reply! We finally moved into the new flat last weekend and there are still boxes everywhere. The kitchen is lovely, but',
  'The second season of the series was filmed in the autumn of 2009 and consists of thirteen episodes. Critics praised the performances of',
  'How to repair a leaking tap\n\nYou will need: an adjustable spanner, a flat screwdriver, a new washer of the right size.\n\n1. Turn off the water.',
  'User: Can you explain why the sky is blue but sunsets are red?\n\nAssistant: Sunlight is a mixture of all colours. When it passes through the atmosphere,',
  'In the third century the city changed hands four times. The chroniclers disagree about the siege of 269: according to one account the walls were',
  'SELECT customers.name, SUM(orders.total) AS revenue\nFROM customers\nJOIN orders ON orders.customer_id = customers.id\n',
  'Scientists have found traces of a previously unknown volcanic eruption in ice cores from Greenland. The study, published on Monday, suggests that',
];
