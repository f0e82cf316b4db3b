// Codec 18, `relay`: theta as the masks that made it, each as its device coded it.  PROTOCOL 5.7.
//
// Who holds the probabilities of the round before can decode everybody's masks and add them up, as the aggregator did.
// After BiCompFL, arXiv 2502.00206. Twin of seedmask/codec/relay.py.

import { concat, same, viewOf } from "../bytes.mjs";
import { fail } from "../errors.mjs";
import { ONE, Theta } from "../mask.mjs";
import { Shared } from "../shared.mjs";
import * as exact from "./exact.mjs";
import { codecById } from "./index.mjs";
import * as varint from "./varint.mjs";

/**
 * Return the next Theta: `total` [d], the sum of weight times mask; `weight` of all `masks`; `unit` divides each
 * weight; `maxLevel` of the levels, 0: the exact share where it has no more levels than masks, or than 255.
 */
function pool(total, weight, unit, masks, maxLevel, clamp) {
  const exact = weight / unit;
  if (!maxLevel && exact <= Math.min(Math.max(masks, 255), 65535)) {
    return new Theta(Uint16Array.from(total, (n) => n / unit), exact, clamp);
  }
  const levels = maxLevel || 255;
  // Two steps of 16 bits: 2^16 times a total need not fit 53 bits.
  const share = (n) => {
    const whole = Math.floor(n / weight);
    return whole * 65536 + Number((BigInt(n % weight) * 65536n + BigInt(Math.floor(weight / 2))) / BigInt(weight));
  };
  return new Theta(Uint16Array.from(total, (n) => Math.floor((share(n) * levels + 32768) / 65536)), levels, clamp);
}

const gcd = (a, b) => (b ? gcd(b, a % b) : a);

export const ID = 18;
export const NAME = "relay";
/** Most that one mask may weigh. */
export const MAX_WEIGHT = 2 ** 22;
/** Most weights, over all masks, that a receiver decodes. */
export const MAX_WORK = 2 ** 30;

/**
 * Code the masks of `round` under `base`, a Theta.
 * @param pooling {maxLevel, clamp, heaviest}: levels of the next theta, its clamp, most that a mask may weigh (0: all alike)
 * @param {object[]} parts {device, samples, codec, payloads} of each device, in any order
 * @param {Int32Array} values the next theta's exact values [e]
 */
export function encode(base, round, { maxLevel, clamp, heaviest }, parts, values = base.exact) {
  const head = new Uint8Array(31);
  const view = viewOf(head);
  head[0] = ID;
  head.set(base.digest(), 1);
  view.setUint32(17, round, true);
  view.setUint16(21, maxLevel, true);
  view.setUint16(23, clamp, true);
  view.setUint32(25, heaviest, true);
  view.setUint16(29, parts.length, true);
  const out = [head, exact.put(values, base.exact)];
  for (const part of [...parts].sort((a, b) => (a.device < b.device ? -1 : 1))) {
    const name = new TextEncoder().encode(part.device);
    const facts = new Uint8Array(6);
    viewOf(facts).setUint32(0, part.samples, true);
    facts.set([part.codec, part.payloads.length], 4);
    out.push(Uint8Array.of(name.length), name, facts);
    for (const payload of part.payloads) {
      const size = [];
      varint.put(size, payload.length);
      out.push(Uint8Array.from(size), payload);
    }
  }
  return concat(out);
}

/**
 * Return what `encode` took, {round, pooling, parts, values}, its masks not decoded. Throws `codec`, `limit`, or
 * `theta-mismatch` where it was coded under another base.
 */
export function read(payload, base) {
  if (payload.length < 31 || payload[0] !== ID) fail("codec", "relay: a header of 31 bytes expected");
  if (!same(payload.subarray(1, 17), base.digest())) fail("theta-mismatch", "relay: masks under other probabilities");
  const view = viewOf(payload);
  const [round, maxLevel, clamp] = [view.getUint32(17, true), view.getUint16(21, true), view.getUint16(23, true)];
  const [heaviest, devices] = [view.getUint32(25, true), view.getUint16(29, true)];
  if (clamp < 1 || clamp >= ONE / 2 || heaviest > MAX_WEIGHT || !devices) {
    fail("codec", "relay: a header out of range");
  }
  let [values, at] = exact.take(payload, 31, base.exact);
  let masks = 0;
  const take = (n) => {
    if (at + n > payload.length) fail("codec", `relay: ${n} bytes expected at ${at}`);
    return payload.subarray(at, (at += n));
  };
  const parts = [];
  for (let i = 0; i < devices; i++) {
    const name = take(take(1)[0]);
    const facts = take(6);
    const samples = viewOf(facts).getUint32(0, true);
    masks += facts[5];
    if (masks * base.d > MAX_WORK) fail("limit", `relay: more than ${MAX_WORK / base.d} masks`);
    const payloads = [];
    for (let k = 0; k < facts[5]; k++) {
      let size;
      [size, at] = varint.get(payload, at);
      payloads.push(take(size));
    }
    const device = String.fromCharCode(...name);
    if (!samples || !facts[5] || name.some((c) => c > 127) || (i && device <= parts[i - 1].device)) {
      fail("codec", `relay: ${device} without samples or masks, or out of order`);
    }
    parts.push({ device, samples, codec: facts[4], payloads });
  }
  if (at !== payload.length) fail("codec", "relay: bytes after the last mask");
  return { round, pooling: { maxLevel, clamp, heaviest }, parts, values };
}

/** Return the Theta that the masks make; `seed` is the model's, `job` a name. Throws as `read` and codecs do. */
export function decode(payload, base, seed, job, maxBlocks = 0) {
  const { round, pooling, parts, values } = read(payload, base);
  const total = new Float64Array(base.d);
  let [weight, unit, masks] = [0, 0, 0];
  for (const { device, samples, codec, payloads } of parts) {
    const each = pooling.heaviest ? Math.min(samples, pooling.heaviest) : 1;
    payloads.forEach((coded, index) => {
      const shared = new Shared({ seed, round, job, device, index });
      const mask = codecById(codec).decode(coded, base, shared, maxBlocks);
      for (let i = 0; i < mask.length; i++) total[i] += each * mask[i];
      weight += each;
      unit = gcd(unit, each);
      masks++;
    });
  }
  const theta = pool(total, weight, unit, masks, pooling.maxLevel, pooling.clamp);
  return new Theta(theta.level, theta.maxLevel, theta.clamp, values);
}
