// Numbers of variable length (LEB128): seven bits a byte, least significant first, the high bit says that more follow.
// The shortest form is the only one. Twin of seedmask/codec/varint.py.  PROTOCOL 5.

import { fail } from "../errors.mjs";

/** Append `value`, 0 .. 2**32 - 1, to the array `out` in 1 to 5 bytes. */
export function put(out, value) {
  for (; value > 127; value = Math.floor(value / 128)) out.push((value % 128) | 128);
  out.push(value);
}

/** Return [value, place after it] of the number at `at`. Throws `codec`. */
export function get(bytes, at) {
  let value = 0;
  for (let i = 0; i < 5; i++) {
    if (at + i >= bytes.length) fail("codec", `a number at byte ${at} has no end`);
    const byte = bytes[at + i];
    value += (byte & 127) * 2 ** (7 * i);
    if (byte < 128) {
      if ((i && !byte) || value >= 2 ** 32) fail("codec", `the number at byte ${at} is not in its shortest form`);
      return [value, at + i + 1];
    }
  }
  return fail("codec", `the number at byte ${at} is longer than 5 bytes`);
}
