// Mask and theta, the two values that devices and aggregator exchange, twin of seedmask/mask.py.  PROTOCOL 3.
//
// A mask is a Uint8Array [d] of 0 and 1, one entry per masked weight. Theta, the probability of each weight, is an
// integer level between any two parties, never a float. FedPM: Isik et al., arXiv 2209.15328.

import { viewOf } from "./bytes.mjs";
import { sha256 } from "./sha256.mjs";

/** Probability 1, in the units of 2**-16 that probabilities have. */
export const ONE = 65536;
/** Default distance of theta from 0 and 1, units of 2**-16: about 0.01. */
export const CLAMP = 655;
/** Most weights of a model. */
export const MAX_D = 2 ** 28;

/** Return the probability of each level 0 .. maxLevel, Uint16Array [maxLevel + 1] in units of 2**-16. */
export function table(maxLevel, clamp = CLAMP) {
  const span = ONE - 2 * clamp;
  return Uint16Array.from({ length: maxLevel + 1 }, (_, l) => clamp + Math.floor((2 * span * l + maxLevel) / (2 * maxLevel)));
}

/** An exact value of 1: they are integers in units of 2**-12. */
export const EXACT_ONE = 4096;
/** Largest magnitude of an exact value, so that a difference of two fits 32 bits with its sign. */
export const EXACT_LIMIT = 2 ** 30 - 1;
/** Most exact values of a model. */
export const MAX_EXACT = 65536;

/** Global probabilities, and the model's exact values, which are part of their digest. */
export class Theta {
  /**
   * @param {Uint16Array} level [d], each 0 .. maxLevel
   * @param {number} maxLevel levels above zero, 1 .. 65535
   * @param {number} clamp distance of the probabilities from 0 and 1, 1 .. 32767 in units of 2**-16
   * @param {Int32Array} exact [e], units of 2**-12
   * Throws RangeError for anything else.
   */
  constructor(level, maxLevel, clamp = CLAMP, exact = new Int32Array(0)) {
    if (!(maxLevel >= 1 && maxLevel <= 65535 && clamp >= 1 && clamp < ONE / 2 && level.length >= 1 && level.length <= MAX_D)) {
      throw new RangeError(`no theta has maxLevel ${maxLevel}, clamp ${clamp}, d ${level.length}`);
    }
    for (const l of level) if (l > maxLevel) throw new RangeError(`a level is 0 .. ${maxLevel}, found ${l}`);
    this.level = level;
    this.maxLevel = maxLevel;
    this.clamp = clamp;
    if (exact.length > MAX_EXACT || exact.some((value) => Math.abs(value) > EXACT_LIMIT)) {
      throw new RangeError(`at most ${MAX_EXACT} exact values of ${EXACT_LIMIT} either way`);
    }
    this.exact = exact;
  }

  /** Number of weights. */
  get d() {
    return this.level.length;
  }

  /** Return the probabilities, Uint16Array [d] in units of 2**-16. */
  q16() {
    const probability = table(this.maxLevel, this.clamp);
    return this.level.map((l) => probability[l]);
  }

  /** Return the 16 bytes that name exactly these probabilities and exact values. */
  digest() {
    const layout = new Uint8Array(8 + 2 * this.d + 4 * this.exact.length);
    putHead(viewOf(layout), this);
    const view = viewOf(layout);
    for (let i = 0; i < this.d; i++) view.setUint16(8 + 2 * i, this.level[i], true);
    this.exact.forEach((value, i) => view.setInt32(8 + 2 * this.d + 4 * i, value, true));
    return sha256(layout).slice(0, 16);
  }
}

/** Write d, maxLevel and clamp into the first 8 bytes of `view`; the digest's layout and `counts` begin with them. */
export function putHead(view, theta) {
  view.setUint32(0, theta.d, true);
  view.setUint16(4, theta.maxLevel, true);
  view.setUint16(6, theta.clamp, true);
}

/** Throw RangeError unless `mask` has `d` entries of 0 and 1; an encoder's guard against a bug at home. */
export function checkMask(mask, d) {
  if (mask.length !== d || mask.some((bit) => bit > 1)) throw new RangeError(`a mask is ${d} times 0 or 1`);
}

/** Draw a mask, Uint8Array [d], from `scores` (logits [d]); `random()` gives private numbers in 0 .. 1. */
export const drawMask = (scores, random) => Uint8Array.from(scores, (s) => (random() < 1 / (1 + Math.exp(-s)) ? 1 : 0));
