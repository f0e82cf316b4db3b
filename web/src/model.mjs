// The file of a finished model: a spec, one mask and exact values, what a job leaves behind, twin of seedmask/model.py.
// PROTOCOL 9.2.

import { concat, same, viewOf } from "./bytes.mjs";
import * as exact from "./codec/exact.mjs";
import * as packed from "./codec/packed.mjs";
import * as tensors from "./codec/tensors.mjs";
import { fail } from "./errors.mjs";
import { Theta } from "./mask.mjs";
import { sha256 } from "./sha256.mjs";
import { readSpec, sizesOf } from "./spec.mjs";

const MODEL_MAGIC = "SMK1";

/**
 * Return the file of a finished model, Uint8Array.
 * @param {Uint8Array} spec the bytes of its canonical JSON
 * @param {Uint8Array} mask [d] of 0 and 1
 * @param {Int32Array} values exact values [e], units of 2**-12
 */
export function writeModel(spec, mask, values = new Int32Array(0)) {
  const { sizes, even, zeros } = modelParts(readSpec(spec));
  const [plain, coded] = [packed.encode(mask, even), tensors.encode(mask, sizes)];
  const [codec, payload] = coded.length < plain.length ? [tensors.ID, coded] : [packed.ID, plain];
  const head = new Uint8Array(8);
  head.set(new TextEncoder().encode(MODEL_MAGIC));
  viewOf(head).setUint32(4, spec.length, true);
  const middle = new Uint8Array(5);
  middle[0] = codec;
  viewOf(middle).setUint32(1, payload.length, true);
  if (values.length !== zeros.length) throw new RangeError(`${zeros.length} exact values expected`);
  const body = concat([head, spec, middle, payload, exact.encode(values, zeros)]);
  return concat([body, sha256(body)]);
}

/**
 * Read a finished model's file.
 * @returns {{spec, mask: Uint8Array, values: Int32Array}} as `readSpec` and `writeModel` have them; weights(spec) times
 * mask are its weights. Throws `bundle`, `spec`, `kind` or `codec`.
 */
export function readModel(bytes) {
  if (new TextDecoder("latin1").decode(bytes.subarray(0, 4)) !== MODEL_MAGIC) {
    fail("bundle", `a model file begins with ${MODEL_MAGIC}`);
  }
  const end = bytes.length - 32;
  if (end < 8 || !same(sha256(bytes.subarray(0, end)), bytes.subarray(end))) fail("bundle", "SHA-256 does not match");
  const view = viewOf(bytes);
  const length = view.getUint32(4, true);
  const at = 13 + length;
  const spec = readSpec(bytes.subarray(8, Math.min(8 + length, end)));
  const behind = at > end ? at : at + view.getUint32(at - 4, true);
  if (at > end || behind > end || (behind < end && !spec.e)) fail("bundle", "the mask has not the length it says");
  const payload = bytes.subarray(at, behind);
  const { sizes, even, zeros } = modelParts(spec);
  const values = exact.decode(bytes.subarray(behind, end), zeros);
  const codec = bytes[at - 5];
  if (codec === packed.ID) return { spec, mask: packed.decode(payload, even), values };
  if (codec === tensors.ID) return { spec, mask: tensors.decode(payload, sizes), values };
  return fail("kind", `a finished model's mask is coded by ${packed.ID} or ${tensors.ID}, found codec ${codec}`);
}

const modelParts = (spec) => ({
  sizes: sizesOf(spec, "masked"),
  even: new Theta(new Uint16Array(spec.d).fill(1), 2),
  zeros: new Int32Array(spec.e),
});
