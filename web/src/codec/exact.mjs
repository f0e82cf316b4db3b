// Codec 20, `exact`: how far a model's exact values have come, as numbers of variable length.  PROTOCOL 5.9.
//
// Devices send the difference to the round's values, and so do `delta` and `relay`; `counts` sends it from zero. Twin
// of seedmask/codec/exact.py.

import { concat } from "../bytes.mjs";
import { fail } from "../errors.mjs";
import { EXACT_LIMIT, EXACT_ONE } from "../mask.mjs";
import * as varint from "./varint.mjs";

export const ID = 20;
export const NAME = "exact";
/** How far one update may move a value, units of 2**-12: 4.0. */
export const REACH = 2 ** 14;

/** Code the differences after - before, both Int32Array [e], each as the varint of its zigzag. */
export function encode(after, before) {
  const out = [];
  after.forEach((value, i) => {
    const moved = value - before[i];
    varint.put(out, moved >= 0 ? 2 * moved : -2 * moved - 1);
  });
  return Uint8Array.from(out);
}

/** Return `after`, Int32Array [e]. Throws `codec`, also for a value that moves by more than `reach`. */
export function decode(payload, before, reach = 2 * EXACT_LIMIT) {
  let at = 0;
  const after = before.map((value) => {
    let number;
    [number, at] = varint.get(payload, at);
    const moved = number % 2 ? -(number + 1) / 2 : number / 2;
    if (Math.abs(moved) > reach || Math.abs(value + moved) > EXACT_LIMIT) {
      fail("codec", `exact: a value moves ${reach} at most, to ${EXACT_LIMIT} at most, either way`);
    }
    return value + moved;
  });
  if (at !== payload.length) fail("codec", `exact: ${payload.length - at} bytes after ${before.length} values`);
  return after;
}

/** Round `values`, numbers [e], to Int32Array [e] in units of 2**-12, no further from `before` than REACH. */
export function quantised(values, before) {
  return before.map((was, i) => {
    const [low, high] = [Math.max(was - REACH, -EXACT_LIMIT), Math.min(was + REACH, EXACT_LIMIT)];
    return Math.min(Math.max(Math.round(values[i] * EXACT_ONE), low), high);
  });
}

/** Code as `encode`, with the length in front; no bytes where there are no values. */
export function put(after, before) {
  if (!before.length) return new Uint8Array(0);
  const coded = encode(after, before);
  const size = [];
  varint.put(size, coded.length);
  return concat([Uint8Array.from(size), coded]);
}

/** Return [values, place after them] of what `put` wrote at `at`. Throws `codec`. */
export function take(payload, at, before) {
  if (!before.length) return [before, at];
  const [size, start] = varint.get(payload, at);
  if (start + size > payload.length) fail("codec", `exact: ${size} bytes expected at ${start}`);
  return [decode(payload.subarray(start, start + size), before), start + size];
}
