// Messages to bytes and back: the one door, and it is total, twin of seedmask/wire.py.  PROTOCOL 6.
//
// A frame is "SM", version, kind, body, CRC-32. A message is a plain object; `type` says which one, the other fields
// have the names of PROTOCOL 6. Digests are Uint8Arrays, `boot` is a BigInt.

import { concat, crc32, viewOf } from "./bytes.mjs";
import { ProtocolError, fail } from "./errors.mjs";
import { isName } from "./names.mjs";
import { sha256 } from "./sha256.mjs";
import { getWork, putWork } from "./work.mjs";

/** The version that frames carry and that `decode` takes. */
export const PROTOCOL_VERSION = 3;

/** Most bytes of an object that is sent in chunks. */
export const MAX_FRAME = 2 ** 28;
/** Where a job stands. */
export const Phase = { WAITING: 0, OPEN: 1, DONE: 2 };
/** What became of an update. */
export const Status = { ACCEPTED: 1, DUPLICATE: 2, LATE: 3, STALE: 4, INVALID: 5, NOT_SELECTED: 6 };

/** A cursor over the body of a frame that knows where the bytes end; reading past it throws `truncated`. */
class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  take(n) {
    const { length } = this.bytes;
    if (this.at + n > length) fail("truncated", `${n} bytes expected at ${this.at} of ${length}`);
    this.at += n;
    return this.bytes.slice(this.at - n, this.at);
  }

  uint(size) {
    const view = viewOf(this.take(size));
    return size === 1 ? view.getUint8(0) : size === 2 ? view.getUint16(0, true) : view.getUint32(0, true);
  }

  uint64() {
    return viewOf(this.take(8)).getBigUint64(0, true);
  }

  text(size = 2) {
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(this.take(this.uint(size)));
    } catch (error) {
      if (error instanceof ProtocolError) throw error;
      return fail("field", "text is not UTF-8");
    }
  }

  name() {
    const text = this.text(1);
    return isName(text) ? text : fail("field", `a name is [a-z0-9-], at most 63 long, found ${text}`);
  }

  flag() {
    const value = this.uint(1);
    return value > 1 ? fail("field", `a flag is 0 or 1, found ${value}`) : value === 1;
  }

  listed(values, what) {
    const value = this.uint(1);
    return Object.values(values).includes(value) ? value : fail("kind", `${what} ${value} is unknown`);
  }
}

/** The bytes of a frame under construction. */
class Writer {
  constructor() {
    this.parts = [];
  }

  bytes(value, size = value.length) {
    if (value.length !== size) throw new RangeError(`${size} bytes expected, found ${value.length}`);
    this.parts.push(value);
    return this;
  }

  uint(size, value) {
    if (!Number.isInteger(value) || value < 0 || value >= 256 ** size) {
      throw new RangeError(`${value} does not fit ${size} bytes`);
    }
    return this.bytes(Uint8Array.from({ length: size }, (_, i) => Math.floor(value / 256 ** i) % 256));
  }

  uint64(value) {
    const cell = new Uint8Array(8);
    if (BigInt.asUintN(64, value) !== value) throw new RangeError(`${value} does not fit 8 bytes`);
    viewOf(cell).setBigUint64(0, value, true);
    return this.bytes(cell);
  }

  text(value, size = 2) {
    const raw = new TextEncoder().encode(value);
    const back = new TextDecoder("utf-8", { ignoreBOM: true }).decode(raw);
    if (back !== value) throw new RangeError("text with half a character");
    return this.uint(size, raw.length).bytes(raw);
  }

  name(value) {
    if (!isName(value)) throw new RangeError(`a name is a-z, 0-9 and '-', at most 63 characters, found ${value}`);
    return this.text(value, 1);
  }

  flag(value) {
    return this.uint(1, value ? 1 : 0);
  }
}

/**
 * Return the 16 bytes that name what an update is for: the name of a `job`, digests of `model` [32] and `theta` [16].
 * Throws RangeError.
 */
export function basis(job, model, theta) {
  if (!isName(job) || model.length !== 32 || theta.length !== 16) {
    throw new RangeError("a name, 32 and 16 bytes expected");
  }
  return sha256(concat([new TextEncoder().encode(job), Uint8Array.of(0), model, theta])).slice(0, 16);
}

const some = (bytes) => bytes.some((byte) => byte !== 0);

// By message type: its kind on the wire, how to write it and how to read it. Fields stand in wire order.
const MESSAGES = {
  announce: {
    kind: 1,
    put(w, m) {
      w.name(m.job).uint(4, m.round).uint(4, m.rounds).uint(1, m.phase);
      w.bytes(m.model, 32).bytes(m.theta, 16).bytes(m.transfer, 16).uint(2, m.chunks);
      w.bytes(m.base, 16).bytes(m.delta, 16).uint(2, m.delta_chunks).uint(4, m.deadline_ms);
      putWork(w, m.work);
      w.uint(2, m.selected.length);
      m.selected.forEach((device) => w.name(device));
      w.text(m.text);
    },
    get(r) {
      const m = { job: r.name(), round: r.uint(4), rounds: r.uint(4), phase: r.listed(Phase, "phase") };
      Object.assign(m, { model: r.take(32), theta: r.take(16), transfer: r.take(16), chunks: r.uint(2) });
      Object.assign(m, { base: r.take(16), delta: r.take(16), delta_chunks: r.uint(2) });
      const offered = m.delta_chunks > 0;
      if (some(m.base) !== offered || some(m.delta) !== offered) {
        fail("field", "base, delta and its chunks are given together or are all zero");
      }
      m.deadline_ms = r.uint(4);
      m.work = getWork(r);
      m.selected = [];
      for (let left = r.uint(2); left > 0; left--) m.selected.push(r.name());
      m.text = r.text();
      return m;
    },
  },
  update: {
    kind: 2,
    put(w, m) {
      // A message without exact values has no such field, as one of a model without them.
      w.uint(4, m.round).bytes(m.basis, 16).uint(4, m.samples).uint(4, m.loss).uint(4, m.correct);
      w.uint(1, m.codec + (m.exact ? 128 : 0)).uint(1, m.payloads.length);
      m.payloads.forEach((payload) => w.uint(4, payload.length).bytes(payload));
      if (m.exact) w.uint(4, m.exact.length).bytes(m.exact);
    },
    get(r) {
      const m = { round: r.uint(4), basis: r.take(16), samples: r.uint(4), loss: r.uint(4), correct: r.uint(4) };
      const codec = r.uint(1);
      m.codec = codec % 128;
      if (!m.samples) fail("field", "an update without samples says nothing");
      const masks = r.uint(1);
      if (!masks) fail("field", "an update has at least one mask");
      m.payloads = Array.from({ length: masks }, () => r.take(r.uint(4)));
      if (codec > 127) m.exact = r.take(r.uint(4));
      if (m.exact?.length === 0) fail("field", "exact values that are announced and empty");
      return m;
    },
  },
  receipt: {
    kind: 3,
    put(w, m) {
      w.name(m.job).uint(4, m.round).bytes(m.transfer, 16).uint(1, m.status).text(m.reason);
    },
    get(r) {
      const m = { job: r.name(), round: r.uint(4), transfer: r.take(16), status: r.listed(Status, "receipt status") };
      m.reason = r.text();
      return m;
    },
  },
  presence: {
    kind: 4,
    put(w, m) {
      w.name(m.device).flag(m.online).uint64(m.boot).bytes(m.model, 32);
      w.uint(4, m.samples).text(m.runtime, 1).text(m.agent, 1);
    },
    get(r) {
      const m = { device: r.name(), online: r.flag(), boot: r.uint64(), model: r.take(32) };
      return Object.assign(m, { samples: r.uint(4), runtime: r.text(1), agent: r.text(1) });
    },
  },
  heartbeat: {
    kind: 5,
    put(w, m) {
      w.name(m.job).flag(m.online).uint64(m.boot);
    },
    get(r) {
      return { job: r.name(), online: r.flag(), boot: r.uint64() };
    },
  },
  chunk: {
    kind: 6,
    put(w, m) {
      w.bytes(m.transfer, 16).uint(4, m.total).uint(4, m.size).uint(2, m.index).uint(2, m.count).bytes(m.data);
    },
    get(r) {
      const m = { transfer: r.take(16), total: r.uint(4), size: r.uint(4), index: r.uint(2), count: r.uint(2) };
      const { total, size, index, count } = m;
      if (!size || !total || total > MAX_FRAME || count !== Math.ceil(total / size) || index >= count) {
        fail("field", `chunk ${index} of ${count}, ${size} bytes each, cannot be part of ${total} bytes`);
      }
      m.data = r.take(Math.min(size, total - index * size));
      return m;
    },
  },
};

const BY_KIND = new Map(Object.entries(MESSAGES).map(([type, entry]) => [entry.kind, { type, ...entry }]));

/** Return the frame of `message`, Uint8Array. Throws RangeError for one that `decode` would refuse. */
export function encode(message) {
  const entry = MESSAGES[message.type];
  const writer = new Writer().bytes(Uint8Array.of(0x53, 0x4d, PROTOCOL_VERSION, entry.kind));
  entry.put(writer, message);
  const frame = concat(writer.parts);
  const whole = concat([frame, new Writer().uint(4, crc32(frame)).parts[0]]);
  try {
    decode(whole);
  } catch (error) {
    throw new RangeError(`${message.type} that nobody would accept: ${error.message}`);
  }
  return whole;
}

/** Return the message in `frame`, Uint8Array. Throws a ProtocolError, and nothing else, for any other bytes. */
export function decode(frame) {
  if (frame.length < 8) fail("truncated", `a frame has at least 8 bytes, found ${frame.length}`);
  if (frame[0] !== 0x53 || frame[1] !== 0x4d) fail("magic", "a frame begins with SM");
  if (frame[2] !== PROTOCOL_VERSION) {
    fail("version", `protocol version ${frame[2]}; this program speaks ${PROTOCOL_VERSION}`);
  }
  const entry = BY_KIND.get(frame[3]) ?? fail("kind", `message kind ${frame[3]} is unknown; known: 1 .. 6`);
  const end = frame.length - 4;
  if (crc32(frame.subarray(0, end)) !== viewOf(frame).getUint32(end, true)) fail("checksum", "CRC-32 does not match");
  const reader = new Reader(frame.subarray(4, end));
  const message = { type: entry.type, ...entry.get(reader) };
  if (reader.at !== reader.bytes.length) fail("trailing-bytes", `${reader.bytes.length - reader.at} bytes too many`);
  return message;
}
