// What an announcement asks a device to do: options, their ranges and defaults.  PROTOCOL 6.
//
// Fields are integers, so that they mean the same everywhere; units and meanings are in PROTOCOL 6.

import { fail } from "./errors.mjs";

const U32 = 2 ** 32 - 1;

// Number on the wire: [field, least, most, default]. Only what differs from its default travels.
const OPTIONS = new Map([
  [1, ["epochs", 1, 65535, 3]],
  [2, ["learning_rate", 1, U32, 100000]],
  [3, ["codec", 0, 255, 3]],
  [4, ["optimizer", 0, 1, 0]],
  [5, ["momentum", 0, 999999, 0]],
  [6, ["keep_optimizer", 0, 1, 0]],
  [7, ["straight_through", 0, 1, 0]],
  [8, ["kl", 0, U32, 0]],
  [9, ["sparsity", 0, U32, 0]],
  [11, ["masks", 1, 255, 1]],
  [12, ["kappa", 1, 1000000, 5000]],
  [13, ["kappa_max", 1, 1000000, 24000]],
  [14, ["max_blocks", 0, 2 ** 28, 0]],
  [16, ["mean_epochs", 0, 65535, 0]],
  [17, ["rate_decay", 0, 999999, 0]],
  [18, ["exact_rate", 1, U32, 1000]],
]);

/** Write `work`, which has every field, to a Writer of wire.mjs. */
export function putWork(w, work) {
  const said = [...OPTIONS].filter(([, [name, , , standard]]) => work[name] !== standard);
  w.uint(1, said.length);
  said.forEach(([id, [name]]) => w.uint(1, id).uint(4, work[name]));
}

/** Read what a device is asked to do from a Reader of wire.mjs, every field filled in. Throws `field`. */
export function getWork(r) {
  const work = Object.fromEntries([...OPTIONS.values()].map(([name, , , standard]) => [name, standard]));
  let last = 0;
  for (let left = r.uint(1); left > 0; left--) {
    const id = r.uint(1);
    const value = r.uint(4);
    const [name, least, most, standard] = OPTIONS.get(id) ?? fail("field", `option ${id} of the work is unknown`);
    if (id <= last) fail("field", `options stand in ascending order, found ${id} after ${last}`);
    if (value < least || value > most) fail("field", `${name} is ${least} .. ${most}, found ${value}`);
    if (value === standard) fail("field", `${name} is ${value} without being said`);
    work[name] = value;
    last = id;
  }
  if (work.kappa > work.kappa_max) fail("field", `kappa ${work.kappa} is above kappa_max ${work.kappa_max}`);
  return work;
}
