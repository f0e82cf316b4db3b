// Codec 19, `tensors`: any mask by each tensor's number of ones; for the file of a finished model.  PROTOCOL 5.8.
//
// A reader of that file holds no probabilities, so the mask states how many ones each tensor has; all-zero and all-one
// tensors take no payload. Twin of seedmask/codec/tensors.py.

import { concat } from "../bytes.mjs";
import { fail } from "../errors.mjs";
import { checkMask } from "../mask.mjs";
import * as ans from "./ans.mjs";
import { nibbleFrequencies } from "./rans.mjs";
import * as varint from "./varint.mjs";

export const ID = 19;
export const NAME = "tensors";

/** Code `mask`, Uint8Array [sum of sizes] of 0 and 1: varint ones of each tensor | rANS of their bits. */
export function encode(mask, sizes) {
  checkMask(mask, sizes.reduce((a, b) => a + b, 0));
  const starts = ans.cumulate(sizes);
  const ones = sizes.map((n, t) => mask.subarray(starts[t], starts[t] + n).reduce((a, b) => a + b, 0));
  const head = [];
  ones.forEach((k) => varint.put(head, k));
  const { contexts, frequency, runs, lanes } = modelOf(sizes, ones);
  if (!contexts.length) return Uint8Array.from(head);
  const symbols = new Uint8Array(contexts.length);
  for (const { at, n, symbol } of runs) {
    for (let i = 0; i < n; i++) symbols[symbol + (i >>> 2)] |= mask[at + i] << (i & 3);
  }
  return concat([Uint8Array.from(head), ans.encode(symbols, contexts, frequency, lanes)]);
}

/** Return the mask, Uint8Array [sum of sizes]. Throws `codec` for bytes that `encode` could not have written. */
export function decode(payload, sizes) {
  let at = 0;
  const ones = sizes.map((n) => {
    let k;
    [k, at] = varint.get(payload, at);
    if (k > n) fail("codec", `tensors mask: ${k} ones among ${n} weights`);
    return k;
  });
  const starts = ans.cumulate(sizes);
  const mask = new Uint8Array(sizes.reduce((a, b) => a + b, 0));
  sizes.forEach((n, t) => ones[t] === n && mask.fill(1, starts[t], starts[t] + n));
  const { contexts, frequency, runs, lanes } = modelOf(sizes, ones);
  if (!contexts.length) {
    if (at !== payload.length) fail("codec", "tensors mask: nothing is left to tell");
    return mask;
  }
  const symbols = ans.decode(payload.subarray(at), contexts, frequency, lanes);
  for (const { at: start, n, symbol, k } of runs) {
    let found = 0;
    for (let i = 0; i < n; i++) found += mask[start + i] = (symbols[symbol + (i >>> 2)] >>> (i & 3)) & 1;
    if (n & 3 && symbols[symbol + (n >>> 2)] >>> (n & 3)) fail("codec", "tensors mask: padding bits must be zero");
    if (found !== k) fail("codec", `tensors mask: ${found} ones, the payload says ${k}`);
  }
  return mask;
}

/**
 * Return `runs`, the tensors that hold both kinds of bit, each with its place, size, ones and first symbol; `contexts`,
 * the run of each symbol; `frequency`, a row for each run; `lanes`, by how many bits are of the rarer kind.
 */
function modelOf(sizes, ones) {
  const starts = ans.cumulate(sizes);
  const runs = [];
  const frequency = [];
  let symbol = 0;
  let rare = 0;
  sizes.forEach((n, t) => {
    const k = ones[t];
    if (k === 0 || k === n) return;
    rare += Math.min(k, n - k);
    runs.push({ at: starts[t], n, k, symbol });
    frequency.push(nibbleFrequencies(Math.min(4095, Math.max(1, Math.floor((8192 * k + n) / (2 * n))))));
    symbol += Math.ceil(n / 4);
  });
  const contexts = new Uint32Array(symbol);
  runs.forEach((run, row) => contexts.fill(row, run.symbol, runs[row + 1]?.symbol ?? symbol));
  return { contexts, frequency, runs, lanes: ans.lanesOf(rare) };
}
