// Codec 2, `rans`: an exact mask coded under the global probabilities that both sides hold.  PROTOCOL 5.2.
//
// Weights are sorted by probability into at most 64 buckets; four bits of one bucket are a symbol, whose frequency
// follows from the bucket's share of ones, which the sender states. Twin of seedmask/codec/rans.py.

import { concat, same, viewOf } from "../bytes.mjs";
import { fail } from "../errors.mjs";
import { checkMask, drawMask } from "../mask.mjs";
import * as ans from "./ans.mjs";

export const ID = 2;
export const NAME = "rans";

/** Draw a mask from `scores` (logits [d]) with private randomness, `random()` in 0 .. 1, and code it. */
export function draw(scores, theta, shared, random) {
  return encode(drawMask(scores, random), theta);
}

/** Code `mask`, Uint8Array [d] of 0 and 1, under `theta`: u16 share of each occupied bucket, then rANS. */
export function encode(mask, theta) {
  checkMask(mask, theta.d);
  const { place, sizes, contexts } = bucketsOf(theta);
  const symbols = new Uint8Array(contexts.length);
  for (let i = 0; i < mask.length; i++) symbols[place[i] >>> 2] |= mask[i] << (place[i] & 3);
  const share = shares(symbols, contexts, sizes);
  const head = new Uint8Array(2 * sizes.length);
  share.forEach((value, b) => viewOf(head).setUint16(2 * b, value, true));
  return concat([head, ans.encode(symbols, contexts, share.map(nibbleFrequencies))]);
}

/** Return the mask, Uint8Array [d]. Throws `codec` for bytes that `encode` could not have written. */
export function decode(payload, theta) {
  const { place, sizes, contexts } = bucketsOf(theta);
  const used = sizes.length;
  if (payload.length < 2 * used) fail("codec", `rans mask: ${used} bucket shares need ${2 * used} bytes`);
  const share = sizes.map((_, b) => viewOf(payload).getUint16(2 * b, true));
  if (share.some((p) => p < 1 || p > 4095)) fail("codec", "rans mask: a bucket's share of ones is 1 .. 4095");
  const symbols = ans.decode(payload.subarray(2 * used), contexts, share.map(nibbleFrequencies));
  const mask = new Uint8Array(theta.d);
  let ones = 0;
  for (let i = 0; i < mask.length; i++) {
    mask[i] = (symbols[place[i] >>> 2] >>> (place[i] & 3)) & 1;
    ones += mask[i];
  }
  if (symbols.reduce((sum, s) => sum + NIBBLE_ONES[s], 0) !== ones) {
    fail("codec", "rans mask: padding bits must be zero");
  }
  if (!same(share, shares(symbols, contexts, sizes))) {
    fail("codec", "rans mask: a bucket's share of ones is not that of its bits");
  }
  return mask;
}

// Ones of each four-bit symbol.
const NIBBLE_ONES = Array.from({ length: 16 }, (_, s) => (s & 1) + ((s >> 1) & 1) + ((s >> 2) & 1) + (s >> 3));

/**
 * Sort the weights into buckets. Returns `sizes` of the occupied ones in ascending order; `place` [d] of each weight's
 * bit, four to a symbol, every bucket beginning on a symbol; `contexts` [symbols], the occupied bucket of each, from 0.
 */
function bucketsOf(theta) {
  const bucket = theta.q16().map((q) => q >>> 10);
  const count = new Uint32Array(64);
  for (const b of bucket) count[b]++;
  const next = new Uint32Array(64);
  const sizes = [];
  let symbol = 0;
  const runs = [];
  count.forEach((size, b) => {
    if (!size) return;
    next[b] = 4 * symbol;
    runs.push([symbol, (symbol += Math.ceil(size / 4))]);
    sizes.push(size);
  });
  const contexts = new Uint8Array(symbol);
  runs.forEach(([start, end], b) => contexts.fill(b, start, end));
  const place = new Uint32Array(theta.d);
  for (let i = 0; i < place.length; i++) place[i] = next[bucket[i]]++;
  return { place, sizes, contexts };
}

/** Return the share of ones of each occupied bucket in 4096ths, halves up, 1 .. 4095. */
function shares(symbols, contexts, sizes) {
  const ones = sizes.map(() => 0);
  for (let i = 0; i < symbols.length; i++) ones[contexts[i]] += NIBBLE_ONES[symbols[i]];
  return sizes.map((size, b) => Math.min(4095, Math.max(1, Math.floor((8192 * ones[b] + size) / (2 * size)))));
}

/** Return the frequency of each four-bit symbol, [16], sum 4096, where `p` of 4096 bits are set. */
export function nibbleFrequencies(p) {
  const q = 4096 - p;
  const byOnes = [0, 1, 2, 3, 4].map((k) => Math.max(1, Math.floor((p ** k * q ** (4 - k)) / 2 ** 36)));
  const frequency = NIBBLE_ONES.map((k) => byOnes[k]);
  const likeliest = p > 2048 ? 15 : 0;
  frequency[likeliest] += 4096 - frequency.reduce((a, b) => a + b);
  return frequency;
}
