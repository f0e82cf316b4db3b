// Codec 4, `crn`: an exact mask, coded by where it differs from what shared uniforms give without training.
// PROTOCOL 5.6.

import { concat } from "../bytes.mjs";
import { fail } from "../errors.mjs";
import { checkMask } from "../mask.mjs";
import { packBits } from "./bits.mjs";
import * as varint from "./varint.mjs";

export const ID = 4;
export const NAME = "crn";

/** The mask u < sigmoid(score); all its chance is in the shared uniforms. */
export function draw(scores, theta, shared) {
  const u = shared.uniforms(theta.d);
  const mask = Uint8Array.from(u, (x, i) => (x < Math.round(65536 / (1 + Math.exp(-scores[i]))) ? 1 : 0));
  return encode(mask, theta, shared);
}

/** Code `mask`, Uint8Array [d] of 0 and 1. */
export function encode(mask, theta, shared) {
  checkMask(mask, theta.d);
  const { base, members } = flipLayout(theta, shared);
  const [head, unary, rest, raw] = [[], [], [], []];
  for (const places of members) {
    const n = places.length;
    const flips = places.map((i) => mask[i] ^ base[i]);
    const f = flips.reduce((a, b) => a + b);
    varint.put(head, f);
    const { k, rare } = rice(n, f);
    if (k < 0) for (const bit of flips) raw.push(bit);
    else if (rare) {
      let before = -1;
      flips.forEach((bit, place) => {
        if (bit !== (2 * f <= n ? 1 : 0)) return;
        const gap = place - before - 1;
        before = place;
        for (let q = gap >>> k; q; q--) unary.push(0);
        unary.push(1);
        for (let b = 0; b < k; b++) rest.push((gap >>> b) & 1);
      });
    }
  }
  const bits = [unary, rest, raw].flat();
  return concat([Uint8Array.from(head), packBits(bits)]);
}

/** Return the mask, Uint8Array [d]. Throws `codec`. */
export function decode(payload, theta, shared) {
  const { base, members } = flipLayout(theta, shared);
  let at = 0;
  const plans = members.map((places) => {
    const n = places.length;
    let f;
    [f, at] = varint.get(payload, at);
    if (f > n) fail("codec", `crn: ${f} flips among ${n} weights`);
    return { places, n, f, ...rice(n, f) };
  });
  const bytes = payload.subarray(at);
  const bit = (i) => (bytes[i >>> 3] >>> (i & 7)) & 1;
  const coded = plans.filter(({ k }) => k >= 0).reduce((sum, { rare }) => sum + rare, 0);
  const quotients = new Uint32Array(coded);
  let tail = 0;
  for (let i = 0; i < coded; i++) {
    while (tail < 8 * bytes.length && !bit(tail)) {
      quotients[i]++;
      tail++;
    }
    if (tail++ >= 8 * bytes.length) fail("codec", "crn: the string of quotients ends too early");
  }
  const total = tail + plans.reduce((sum, { k, rare, n }) => sum + (k < 0 ? n : rare * k), 0);
  if (bytes.length !== Math.ceil(total / 8)) fail("codec", `crn: ${total} bits expected, found ${8 * bytes.length}`);
  for (let i = total; i < 8 * bytes.length; i++) if (bit(i)) fail("codec", "crn: padding bits must be zero");
  const mask = base;
  let raw = total - plans.reduce((sum, { k, n }) => sum + (k < 0 ? n : 0), 0);
  let next = 0;
  for (const { places, n, f, k, rare } of plans) {
    const flips = new Uint8Array(n).fill(k >= 0 && 2 * f > n ? 1 : 0);
    if (k < 0) {
      let ones = 0;
      for (let i = 0; i < n; i++) ones += flips[i] = bit(raw++);
      if (ones !== f) fail("codec", `crn: ${ones} flips where ${f} are stated`);
    } else {
      let place = -1;
      for (let i = 0; i < rare; i++) {
        let gap = quotients[next++] * 2 ** k;
        for (let b = 0; b < k; b++) gap += bit(tail++) * 2 ** b;
        place += gap + 1;
        if (place >= n) fail("codec", `crn: a flip at place ${place} of ${n}`);
        flips[place] ^= 1;
      }
    }
    for (let i = 0; i < n; i++) mask[places[i]] ^= flips[i];
  }
  return mask;
}

const EDGES = [3, 6, 10, 13, 19, 26, 32, 38, 45, 54, 64, 77, 90, 102, 115, 128, 147, 166, 192, 224, 288];

/** 64 logit((x + 1/2) / 4096), about, by integer sums. */
const LOGIT = (() => {
  const out = new Int32Array(4096);
  let sum = 0;
  for (let x = 2049; x < 4096; x++) {
    sum += Math.floor(2 ** 34 / (x * (4096 - x)));
    out[x] = Math.floor((sum + 2 ** 15) / 2 ** 16);
    out[4095 - x] = -out[x];
  }
  return out;
})();

/** `base`, the mask without training; `members`, the weights of each bucket that is not empty. */
function flipLayout(theta, shared) {
  const u = shared.uniforms(theta.d);
  const q16 = theta.q16();
  const members = Array.from({ length: EDGES.length + 1 }, () => []);
  for (let i = 0; i < u.length; i++) {
    const distance = Math.abs(LOGIT[u[i] >>> 4] - LOGIT[q16[i] >>> 4]);
    let bucket = 0;
    while (bucket < EDGES.length && distance >= EDGES[bucket]) bucket++;
    members[bucket].push(i);
  }
  return { base: Uint8Array.from(u, (x, i) => (x < q16[i] ? 1 : 0)), members: members.filter((m) => m.length) };
}

/** Rice parameter k of a bucket with `f` flips among `n`, -1 for raw; `rare`: how many places are coded. */
function rice(n, f) {
  const rare = Math.min(f, n - f);
  if (!rare) return { k: 0, rare };
  if (5 * rare > 2 * n) return { k: -1, rare };
  const ratio = Math.floor(((n + rare) * 45426) / (65536 * rare));
  return { k: Math.max(0, 31 - Math.clz32(ratio)), rare };
}
