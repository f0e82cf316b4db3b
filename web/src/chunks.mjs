// Large objects in small frames, because brokers limit packets and queue whole messages, twin of seedmask/chunks.py.
// PROTOCOL 7.

import { concat, same } from "./bytes.mjs";
import { fail } from "./errors.mjs";
import { sha256 } from "./sha256.mjs";
import { MAX_FRAME } from "./wire.mjs";

/** Bytes of data in a chunk, within every broker's default limit that we know of. */
export const CHUNK_BYTES = 60 * 1024;

/** Return the 16 bytes that name `blob`: the first half of its SHA-256. */
export const transferId = (blob) => sha256(blob).slice(0, 16);

/** Cut `blob`, Uint8Array, into chunk messages of `size` bytes each. Throws RangeError for too many, or none. */
export function split(blob, size = CHUNK_BYTES) {
  const count = Math.ceil(blob.length / size);
  if (count < 1 || count > 65535 || blob.length > MAX_FRAME) {
    throw new RangeError(`${blob.length} bytes in chunks of ${size} are ${count}; 1 .. 65535 can be sent`);
  }
  const transfer = transferId(blob);
  return Array.from({ length: count }, (_, index) => {
    const data = blob.slice(index * size, (index + 1) * size);
    return { type: "chunk", transfer, total: blob.length, size, index, count, data };
  });
}

/** A transfer on its way in, begun with the first chunk that was seen. Throws `limit` above `limit` bytes. */
export class Assembly {
  constructor(chunk, limit) {
    if (chunk.total > limit) fail("limit", `a transfer of ${chunk.total} bytes; at most ${limit} are taken here`);
    this.first = chunk;
    this.parts = new Map();
    this.add(chunk);
  }

  /** Put `chunk` in its place; a repeat changes nothing. Throws `field` for a chunk of another transfer. */
  add(chunk) {
    const { transfer, total, size } = this.first;
    if (!same(chunk.transfer, transfer) || chunk.total !== total || chunk.size !== size) {
      fail("field", "a chunk of another transfer");
    }
    if (!this.parts.has(chunk.index)) this.parts.set(chunk.index, chunk.data);
    return this;
  }

  /** True once every chunk is here. */
  get complete() {
    return this.parts.size === this.first.count;
  }

  /** Indices of the chunks that have not come yet. */
  get missing() {
    return Array.from({ length: this.first.count }, (_, i) => i).filter((i) => !this.parts.has(i));
  }

  /** Return the whole, Uint8Array, once complete. Throws `checksum` unless its content is what the id names. */
  blob() {
    const whole = concat(Array.from({ length: this.first.count }, (_, i) => this.parts.get(i)));
    if (!same(transferId(whole), this.first.transfer)) fail("checksum", "a transfer's content does not match its id");
    return whole;
  }
}
