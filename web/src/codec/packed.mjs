// Codec 1, `packed`: one bit per weight, least significant bit first. The baseline to beat.  PROTOCOL 5.1.

import { fail } from "../errors.mjs";
import { checkMask, drawMask } from "../mask.mjs";
import { packBits, unpackBits } from "./bits.mjs";

export const ID = 1;
export const NAME = "packed";

/** Draw a mask from `scores` (logits [d]) with private randomness, `random()` in 0 .. 1, and code it. */
export function draw(scores, theta, shared, random) {
  return encode(drawMask(scores, random), theta);
}

/** Code `mask`, Uint8Array [d] of 0 and 1. */
export function encode(mask, theta) {
  checkMask(mask, theta.d);
  return packBits(mask);
}

/** Return the mask, Uint8Array [d]. Throws `codec`. */
export function decode(payload, theta) {
  if (payload.length !== Math.ceil(theta.d / 8)) fail("codec", `packed mask of ${payload.length} bytes`);
  return unpackBits(payload, theta.d, "packed mask");
}
