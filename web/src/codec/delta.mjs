// Codec 17, `delta`: theta's levels, coded under those of a theta that the receiver holds.  PROTOCOL 5.6.
//
// Theta moves little from round to round, so each weight's level is coded under frequencies of its own level before.
// Twin of seedmask/codec/delta.py.

import { concat, same, viewOf } from "../bytes.mjs";
import { fail } from "../errors.mjs";
import { ONE, Theta } from "../mask.mjs";
import * as ans from "./ans.mjs";
import * as exact from "./exact.mjs";

export const ID = 17;
export const NAME = "delta";

/** Code `theta` under `base`, two Thetas of the same model with few levels each. */
export function encode(theta, base) {
  const { contexts, rows } = contextsOf(base);
  const frequency = rowsOf(theta.level, theta.maxLevel, contexts, rows);
  const head = new Uint8Array(21);
  const view = viewOf(head);
  head[0] = ID;
  head.set(base.digest(), 1);
  view.setUint16(17, theta.maxLevel, true);
  view.setUint16(19, theta.clamp, true);
  const stated = new Uint8Array(2 * rows * (theta.maxLevel + 1));
  frequency.flat().forEach((f, i) => viewOf(stated).setUint16(2 * i, f, true));
  const values = exact.put(theta.exact, base.exact);
  return concat([head, values, stated, ans.encode(theta.level, contexts, frequency)]);
}

/** Return the Theta after `base`. Throws `codec`, or `theta-mismatch` where it was coded under another base. */
export function decode(payload, base) {
  if (payload.length < 21 || payload[0] !== ID) fail("codec", "delta: a header of 21 bytes expected");
  const view = viewOf(payload);
  if (!same(payload.subarray(1, 17), base.digest())) fail("theta-mismatch", "delta: coded under other probabilities");
  const [maxLevel, clamp] = [view.getUint16(17, true), view.getUint16(19, true)];
  if (maxLevel < 1 || maxLevel > 255 || base.maxLevel > 255 || (maxLevel + 1) * (base.maxLevel + 1) > 4096 || clamp < 1 || clamp >= ONE / 2) {
    fail("codec", `delta: maxLevel ${maxLevel}, clamp ${clamp} out of range`);
  }
  const { contexts, rows } = contextsOf(base);
  const [values, start] = exact.take(payload, 21, base.exact);
  const at = start + 2 * rows * (maxLevel + 1);
  if (payload.length < at) fail("codec", "delta: the frequencies end too early");
  const frequency = Array.from({ length: rows }, (_, row) =>
    Array.from({ length: maxLevel + 1 }, (_, s) => view.getUint16(start + 2 * (row * (maxLevel + 1) + s), true)));
  if (frequency.some((row) => row.reduce((a, b) => a + b) !== 4096)) {
    fail("codec", "delta: the frequencies of a row do not sum to 4096");
  }
  const level = Uint16Array.from(ans.decode(payload.subarray(at), contexts, frequency));
  if (!rowsOf(level, maxLevel, contexts, rows).every((row, i) => same(row, frequency[i]))) {
    fail("codec", "delta: the frequencies are not those of the levels");
  }
  return new Theta(level, maxLevel, clamp, values);
}

/** Number the levels that occur in `base`: `contexts` [d], each weight's number, and how many `rows` there are. */
function contextsOf(base) {
  const there = new Uint8Array(base.maxLevel + 1);
  for (const l of base.level) there[l] = 1;
  let rows = 0;
  const number = Uint16Array.from(there, (used) => (used ? rows++ : 0));
  return { contexts: Uint16Array.from(base.level, (l) => number[l]), rows };
}

/** Return the frequencies of the next level for each level before, [rows][maxLevel + 1]. */
function rowsOf(level, maxLevel, contexts, rows) {
  const count = Array.from({ length: rows }, () => new Array(maxLevel + 1).fill(0));
  for (let i = 0; i < level.length; i++) count[contexts[i]][level[i]]++;
  return count.map(ans.normalise);
}
