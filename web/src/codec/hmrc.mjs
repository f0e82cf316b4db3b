// Codec 3, `hmrc`: one byte for a block of some hundred weights, by minimal random coding.  PROTOCOL 5.5.
//
// The byte is the number of one of 256 masks that both sides can draw from theta and shared uniforms, chosen so that it
// is as good as drawn from the device's probabilities (Havasi et al., arXiv 1810.00440; for federated masks: Isik et
// al., arXiv 2306.12625). Candidates differ by Walsh functions of the weight's place, so that one Walsh-Hadamard
// transform weighs all of them. Twin of seedmask/codec/hmrc.py, which explains it in full.

import { fail } from "../errors.mjs";
import { ONE, table } from "../mask.mjs";
import * as varint from "./varint.mjs";

export const ID = 3;
export const NAME = "hmrc";
/** Weight of the log-likelihood ratio that makes up for there being 256 candidates only. */
export const TILT = 1.5;

/**
 * Choose a candidate for each block: varint number of blocks | one byte each.
 * @param scores logits [d]
 * @param {() => number} random private numbers in 0 .. 1
 * @param plan `kappa` bits of relative entropy per byte; at most `maxBlocks` blocks, 0: d div 8
 */
export function draw(scores, theta, shared, random, { kappa = 5, maxBlocks = 0 } = {}) {
  const { d, level } = theta;
  const q16 = theta.q16();
  const u = shared.uniforms(d);
  const known = Array.from(table(theta.maxLevel, theta.clamp), (q) => {
    const t = q / ONE;
    let both = t / 4;
    for (let s = 1; s < 4; s++) both += (Math.max(0, t - s / 4) + Math.max(0, t - 1 + s / 4)) / 4;
    return { logit: Math.log(t / (1 - t)), efficiency: (t - both) / (t * (1 - t)) };
  });
  const softplus = (s) => Math.max(s, 0) + Math.log1p(Math.exp(-Math.abs(s)));
  const step = Math.max(1, Math.floor(d / 65536)) | 1;
  let [entropy, counted] = [0, 0];
  for (let i = 0; i < d; i += step, counted++) {
    const s = Math.min(30, Math.max(-30, scores[i]));
    const { logit, efficiency } = known[level[i]];
    entropy += ((s - logit) / (1 + Math.exp(-s)) - softplus(s) + softplus(logit)) / efficiency;
  }
  const most = blockLimit(d, maxBlocks);
  let blocks = Math.min(Math.max(Math.round(((entropy / counted / Math.LN2) * d) / kappa), 1), most);
  while (blocks < most && [2, 3, 5, 7].some((prime) => blocks % prime === 0)) blocks++;

  const spectrum = new Float64Array(256 * blocks);
  for (let i = 0; i < d; i++) {
    const { logit, efficiency } = known[level[i]];
    const s = Math.min(30, Math.max(-30, scores[i]));
    const gain = ((TILT / 4) * (s - logit)) / efficiency;
    const w = [0, 1, 2, 3].map((shift) => (((u[i] + 16384 * shift) & 65535) < q16[i] ? gain : 0));
    const at = 256 * (i % blocks);
    const r = ROW[Math.floor(i / blocks) % 255];
    spectrum[at + r[0]] += w[0] - w[2] + w[1] - w[3];
    spectrum[at + r[1]] += w[0] + w[2] - w[1] - w[3];
    spectrum[at + r[2]] += w[0] - w[2] - w[1] + w[3];
  }
  const out = [];
  varint.put(out, blocks);
  for (let b = 0; b < blocks; b++) {
    const scored = walsh(spectrum.subarray(256 * b, 256 * b + 256));
    const top = scored.reduce((a, c) => Math.max(a, c));
    const share = scored.map((value) => Math.exp(value - top));
    const wanted = random() * share.reduce((a, c) => a + c);
    let [j, sum] = [0, share[0]];
    while (j < 255 && sum < wanted) sum += share[++j];
    out.push(j);
  }
  return Uint8Array.from(out);
}

/** Return the mask that the bytes name, Uint8Array [d], by integers only. Throws `codec` or `limit`. */
export function decode(payload, theta, shared, maxBlocks = 0) {
  const [blocks, at] = varint.get(payload, 0);
  const most = blockLimit(theta.d, maxBlocks);
  if (blocks < 1 || blocks > most) fail("limit", `hmrc: ${blocks} blocks, 1 .. ${most} are allowed`);
  if (payload.length !== at + blocks) fail("codec", `hmrc: ${blocks} blocks in ${payload.length - at} bytes`);
  const q16 = theta.q16();
  const u = shared.uniforms(theta.d);
  const mask = new Uint8Array(theta.d);
  for (let start = 0, p = 0; start < mask.length; start += blocks, p = (p + 1) % 255) {
    const [r1, r2] = ROW[p];
    const end = Math.min(blocks, mask.length - start);
    for (let b = 0; b < end; b++) {
      const j = payload[at + b];
      const shift = 2 * PARITY[r1 & j] + PARITY[r2 & j];
      mask[start + b] = ((u[start + b] + 16384 * shift) & 65535) < q16[start + b] ? 1 : 0;
    }
  }
  return mask;
}

// Parity of the bits of each byte.
const PARITY = Uint8Array.from({ length: 256 }, (_, i) => {
  let bits = 0;
  for (let rest = i; rest; rest >>= 1) bits ^= rest & 1;
  return bits;
});

// The three Walsh functions of each row of blocks: r, 2 r in GF(256), and their sum; they repeat after 255 rows.
const ROW = Array.from({ length: 255 }, (_, p) => {
  const r1 = p + 1;
  const r2 = r1 < 128 ? r1 << 1 : (r1 << 1) ^ 0x11d;
  return [r1, r2, r1 ^ r2];
});

/** Return the most blocks that `d` weights may have. */
const blockLimit = (d, maxBlocks) => Math.min(Math.max(1, Math.floor(d / 8)), maxBlocks || Infinity);

/** Transform 256 values by Walsh and Hadamard, in place. */
function walsh(values) {
  for (let half = 1; half < 256; half *= 2) {
    for (let i = 0; i < 256; i++) {
      if (i & half) continue;
      const [a, b] = [values[i], values[i + half]];
      values[i] = a + b;
      values[i + half] = a - b;
    }
  }
  return values;
}
