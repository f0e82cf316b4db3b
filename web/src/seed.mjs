// From a seed to integers that every machine agrees on: the project's only generator, Threefry-2x32-20.  PROTOCOL 2.
//
// Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. Counter-based: word n depends on
// (key, n) alone. Twin of seedmask/seed.py. A key is two 32-bit words, [low, high].

/** Streams: a number folded into the seed's key, so that no two uses ever share a word. */
export const WEIGHTS = 1;
export const UNIFORMS = 2;

// The constants of Threefry, by groups of four rounds.
const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];

/** Encrypt the counter (c0, c1) under `key` with 20 rounds; returns two words, [x0, x1]. */
export function threefry2x32(key, c0, c1) {
  const k = [key[0], key[1], key[0] ^ key[1] ^ 0x1bd11bda];
  let x0 = (c0 + k[0]) | 0;
  let x1 = (c1 + k[1]) | 0;
  for (let group = 0; group < 5; group++) {
    for (const r of ROTATIONS[group & 1]) {
      x0 = (x0 + x1) | 0;
      x1 = ((x1 << r) | (x1 >>> (32 - r))) ^ x0;
    }
    x0 = (x0 + k[(group + 1) % 3]) | 0;
    x1 = (x1 + k[(group + 2) % 3] + group + 1) | 0;
  }
  return [x0 >>> 0, x1 >>> 0];
}

/**
 * Return the key of a 64-bit seed.
 * @param {number|bigint|string} seed an integer up to 2**53 - 1, a BigInt, or 16 hexadecimal digits
 * @returns {number[]} [low word, high word]; throws RangeError outside 0 .. 2**64 - 1
 */
export function keyOf(seed) {
  if (typeof seed === "string") {
    if (!/^[0-9a-f]{16}$/.test(seed)) throw new RangeError(`a seed is 16 hexadecimal digits, found ${seed}`);
    return [parseInt(seed.slice(8), 16), parseInt(seed.slice(0, 8), 16)];
  }
  if (typeof seed === "bigint" ? seed < 0n || seed >> 64n !== 0n : !Number.isSafeInteger(seed) || seed < 0) {
    throw new RangeError(`a seed is an integer in 0 .. 2**64 - 1, found ${seed}`);
  }
  if (typeof seed === "bigint") return [Number(seed & 0xffffffffn), Number(seed >> 32n)];
  return [seed >>> 0, Math.floor(seed / 0x100000000)];
}

/** Return a new key that depends on `key` and on one 64-bit `number` (a stream, a round, a slot). */
export const fold = (key, number) => threefry2x32(key, ...keyOf(number));

/** Return the first `n` words of the key's stream, Uint32Array [n]: counter (i, 0) gives words 2i and 2i + 1. */
export function words(key, n) {
  const out = new Uint32Array(n);
  for (let i = 0; i < n; i += 2) {
    const [x0, x1] = threefry2x32(key, i / 2, 0);
    out[i] = x0;
    if (i + 1 < n) out[i + 1] = x1;
  }
  return out;
}

/** Return the key whose stream holds the signs of a model's weights. */
export const weightsKey = (seed) => fold(keyOf(seed), WEIGHTS);

/** Return the sign bits of `d` weights, Uint8Array [d] of 0 (plus) or 1 (minus): bit j % 32 of word j div 32. */
export function signBits(seed, d) {
  const stream = words(weightsKey(seed), Math.ceil(d / 32));
  return Uint8Array.from({ length: d }, (_, j) => (stream[j >>> 5] >>> (j & 31)) & 1);
}

/** Return the key of the shared uniforms of one slot (64 bits) in one round. */
export const uniformsKey = (seed, round, slot) => fold(fold(fold(keyOf(seed), UNIFORMS), round), slot);

/** Return `n` uniforms, Uint16Array [n]: the low and then the high half of each word of the key's stream. */
export function uniforms16(key, n) {
  const stream = words(key, Math.ceil(n / 2));
  return Uint16Array.from({ length: n }, (_, i) => (i & 1 ? stream[i >>> 1] >>> 16 : stream[i >>> 1] & 0xffff));
}
