// Interleaved rANS over integers: the entropy coder under `rans`, `counts`, `delta` and `tensors`.  PROTOCOL 5.3.
//
// Jarek Duda, "Asymmetric numeral systems", arXiv 1311.2540; interleaving after Fabian Giesen, arXiv 1402.3392. The
// surprise of any ANS coder: it is a stack, so the encoder walks backwards and the decoder forwards. Symbol i belongs
// to lane i mod `lanes`; states are below 2**32, words have 16 bits, frequencies of a row sum to 4096. Twin of
// seedmask/codec/ans.py.

import { viewOf } from "../bytes.mjs";
import { fail } from "../errors.mjs";

const LOW = 65536; // every state rests in LOW .. 2**32 - 1

/** Return how many lanes pay for `n` symbols: a power of two, 1 .. 1024. */
export const lanesOf = (n) => 2 ** Math.min(10, Math.max(0, 32 - Math.clz32(n) - 11));

/** Return the sum of what stands before each number, an array as long. */
export const cumulate = (frequency) => {
  let sum = 0;
  return frequency.map((f) => (sum += f) - f);
};

/** Code `symbols` [n], each under row `contexts[i]` of `frequency`: u32 state of each lane | u16 words. */
export function encode(symbols, contexts, frequency, lanes = lanesOf(symbols.length)) {
  const n = symbols.length;
  const cumulative = frequency.map(cumulate);
  const state = new Uint32Array(lanes).fill(LOW);
  const out = new Uint16Array(n); // at most one word a symbol
  let at = n;
  for (let i = n - 1; i >= 0; i--) {
    const f = frequency[contexts[i]][symbols[i]];
    let x = state[i % lanes];
    if (x >= f * 2 ** 20) {
      out[--at] = x & 0xffff;
      x >>>= 16;
    }
    const quotient = Math.floor(x / f);
    state[i % lanes] = quotient * 4096 + (x - quotient * f) + cumulative[contexts[i]][symbols[i]];
  }
  const bytes = new Uint8Array(4 * lanes + 2 * (n - at));
  const view = viewOf(bytes);
  state.forEach((x, lane) => view.setUint32(4 * lane, x, true));
  for (let k = at; k < n; k++) view.setUint16(4 * lanes + 2 * (k - at), out[k], true);
  return bytes;
}

/** Return the symbols, Uint8Array [contexts.length]. Throws `codec` for bytes that `encode` could not have written. */
export function decode(payload, contexts, frequency, lanes = lanesOf(contexts.length)) {
  const n = contexts.length;
  if (payload.length < 4 * lanes || payload.length % 2) {
    fail("codec", `rANS payload of ${payload.length} bytes cannot hold ${lanes} lanes and whole words`);
  }
  const view = viewOf(payload);
  const state = Uint32Array.from({ length: lanes }, (_, lane) => view.getUint32(4 * lane, true));
  if (state.some((x) => x < LOW)) fail("codec", "rANS payload: a lane's state is below 2**16");

  const cumulative = frequency.map(cumulate);
  const owner = frequency.map((row, c) => {
    const slots = new Uint8Array(4096);
    row.forEach((f, symbol) => slots.fill(symbol, cumulative[c][symbol], cumulative[c][symbol] + f));
    return slots;
  });
  const symbols = new Uint8Array(n);
  let at = 4 * lanes;
  for (let i = 0; i < n; i++) {
    const c = contexts[i];
    let x = state[i % lanes];
    const slot = x & 4095;
    const symbol = owner[c][slot];
    symbols[i] = symbol;
    x = frequency[c][symbol] * (x >>> 12) + slot - cumulative[c][symbol];
    if (x < LOW) {
      if (at === payload.length) fail("codec", "rANS payload ends before its last symbol");
      x = x * LOW + view.getUint16(at, true);
      at += 2;
    }
    state[i % lanes] = x;
  }
  if (at !== payload.length || state.some((x) => x !== LOW)) {
    fail("codec", "rANS payload does not end where its encoder began");
  }
  return symbols;
}

/** Return frequencies that sum to 4096 for `counts` of symbols, at least 1 wherever one occurs. */
export function normalise(counts) {
  const total = counts.reduce((a, b) => a + b);
  const frequency = counts.map((count) => Math.max(Math.floor((count * 4096) / total), count ? 1 : 0));
  for (;;) {
    const spare = 4096 - frequency.reduce((a, b) => a + b);
    if (!spare) return frequency;
    frequency[frequency.indexOf(Math.max(...frequency))] += Math.max(spare, -1);
  }
}
