// Codec 16, `counts`: the global probabilities as integer levels, the way down.  PROTOCOL 5.4.
//
// Levels above eight bits are split: the high part is entropy coded under its own frequencies, the low bits follow raw.
// Exact values, where a model has any, come last. Twin of seedmask/codec/counts.py.

import { concat, same, viewOf } from "../bytes.mjs";
import { fail } from "../errors.mjs";
import { MAX_D, ONE, Theta, putHead } from "../mask.mjs";
import * as ans from "./ans.mjs";
import { packBits, unpackBits } from "./bits.mjs";
import * as exact from "./exact.mjs";

export const ID = 16;
export const NAME = "counts";

/** Code `theta`, with its exact values. */
export function encode(theta) {
  const shift = lowBits(theta.maxLevel);
  const high = Uint8Array.from(theta.level, (l) => l >>> shift);
  const frequency = highFrequencies(high, (theta.maxLevel >>> shift) + 1);
  const coded = ans.encode(high, new Uint8Array(theta.d), [frequency]);
  const head = new Uint8Array(8 + 2 * frequency.length + 4);
  const view = viewOf(head);
  putHead(view, theta);
  frequency.forEach((f, symbol) => view.setUint16(8 + 2 * symbol, f, true));
  view.setUint32(head.length - 4, coded.length, true);
  const low = new Uint8Array(theta.d * shift);
  for (let i = 0; i < low.length; i++) low[i] = (theta.level[Math.floor(i / shift)] >>> i % shift) & 1;
  return concat([head, coded, packBits(low), exact.encode(theta.exact, new Int32Array(theta.exact.length))]);
}

/** Return the Theta of `d` weights and `e` exact values. Throws `codec` or `limit`. */
export function decode(payload, d, e = 0) {
  if (payload.length < 8) fail("codec", `counts: a header of 8 bytes expected, found ${payload.length}`);
  const view = viewOf(payload);
  const [size, maxLevel, clamp] = [view.getUint32(0, true), view.getUint16(4, true), view.getUint16(6, true)];
  if (size !== d || size < 1 || size > MAX_D) fail("limit", `counts for ${size} weights, the model has ${d}`);
  if (maxLevel < 1 || clamp < 1 || clamp >= ONE / 2) fail("codec", `counts: maxLevel ${maxLevel}, clamp ${clamp} out of range`);
  const shift = lowBits(maxLevel);
  const at = 8 + 2 * ((maxLevel >>> shift) + 1) + 4;
  if (payload.length < at) fail("codec", `counts: ${payload.length} bytes cannot hold the frequencies`);
  const frequency = Array.from({ length: (maxLevel >>> shift) + 1 }, (_, s) => view.getUint16(8 + 2 * s, true));
  if (frequency.reduce((a, b) => a + b) !== 4096) fail("codec", "counts: frequencies do not sum to 4096");
  const end = at + view.getUint32(at - 4, true);
  const behind = end + Math.ceil((d * shift) / 8);
  if (payload.length < behind || (payload.length > behind && !e)) fail("codec", "counts: the lengths do not fit");
  const high = ans.decode(payload.subarray(at, end), new Uint8Array(d), [frequency]);
  if (!same(frequency, highFrequencies(high, frequency.length))) {
    fail("codec", "counts: the frequencies are not those of the levels");
  }
  const low = unpackBits(payload.subarray(end, behind), d * shift, "counts");
  const level = Uint16Array.from(high, (symbol, i) => {
    let bits = 0;
    for (let b = 0; b < shift; b++) bits |= low[i * shift + b] << b;
    return (symbol << shift) | bits;
  });
  if (level.some((l) => l > maxLevel)) fail("codec", `counts: a level above the maxLevel ${maxLevel}`);
  return new Theta(level, maxLevel, clamp, exact.decode(payload.subarray(behind), new Int32Array(e)));
}

/** Return the frequencies [symbols] of the levels' high parts. */
function highFrequencies(high, symbols) {
  const count = new Array(symbols).fill(0);
  for (const symbol of high) count[symbol]++;
  return ans.normalise(count);
}

/** Return how many low bits of a level travel raw, so that at most 256 symbols are entropy coded. */
const lowBits = (maxLevel) => Math.max(0, 32 - Math.clz32(maxLevel) - 8);
