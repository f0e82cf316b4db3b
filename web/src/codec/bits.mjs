// Bits in bytes, least significant first.  PROTOCOL 5.1.

import { fail } from "../errors.mjs";

/** Return `bits`, an array [n] of 0 and 1, as Uint8Array [ceil(n / 8)], zeros behind them. */
export function packBits(bits) {
  const out = new Uint8Array(Math.ceil(bits.length / 8));
  for (let i = 0; i < bits.length; i++) out[i >>> 3] |= bits[i] << (i & 7);
  return out;
}

/** Return the first `n` bits of `bytes`, Uint8Array [n]. Throws `codec` unless the others are zero. */
export function unpackBits(bytes, n, what) {
  for (let i = n; i < 8 * bytes.length; i++) {
    if ((bytes[i >>> 3] >>> (i & 7)) & 1) fail("codec", `${what}: padding bits must be zero`);
  }
  return Uint8Array.from({ length: n }, (_, i) => (bytes[i >>> 3] >>> (i & 7)) & 1);
}
