// Seedmask in JavaScript: the generator, mask and theta, model spec, codecs, frames and chunks of seedmask/PROTOCOL.md.
//
// The second implementation, and the phone client's base. It does no IO and has no dependencies, so the same file runs
// in a browser, in a worker and in Node; what it leaves to others is training, storage and the MQTT connection.
// `tests/vectors/v2.json` holds it and the Python package to the same bytes (`node tests/vectors/verify.mjs`).
// Written to be ported: typed arrays, 32-bit arithmetic, and nowhere a number above 2**53. Section numbers are
// PROTOCOL.md's.
//
// Two kinds of wrong: a ProtocolError with the code of section 10 is theirs; a RangeError or TypeError is ours, a bug.

export const PROTOCOL_VERSION = 2;

export class ProtocolError extends Error {
  constructor(code, text) {
    super(`${code}: ${text}`);
    this.name = "ProtocolError";
    this.code = code;
  }
}

const fail = (code, text) => { throw new ProtocolError(code, text); };

// ---------------------------------------------------------------------------------------------- 1 conventions

/** Bytes to lower-case hexadecimal digits. */
export function toHex(bytes) {
  let text = "";
  for (const byte of bytes) text += byte.toString(16).padStart(2, "0");
  return text;
}

/** Hexadecimal digits to Uint8Array. */
export function fromHex(text) {
  if (!/^([0-9a-f]{2})*$/.test(text)) throw new RangeError(`not pairs of hexadecimal digits: ${text}`);
  return Uint8Array.from({ length: text.length / 2 }, (_, i) => parseInt(text.slice(2 * i, 2 * i + 2), 16));
}

/** Uint8Arrays, one after the other. */
export function concat(parts) {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** Whether two byte arrays (or typed arrays) hold the same. */
export function same(a, b) {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n >>> 0;
});

/** CRC-32 as in IEEE 802.3, zip and zlib. */
export function crc32(bytes) {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]) & 0xff] ^ (crc >>> 8);
  return ~crc >>> 0;
}

const SHA_K = Uint32Array.from(
  ("428a2f98 71374491 b5c0fbcf e9b5dba5 3956c25b 59f111f1 923f82a4 ab1c5ed5 d807aa98 12835b01 243185be 550c7dc3 " +
    "72be5d74 80deb1fe 9bdc06a7 c19bf174 e49b69c1 efbe4786 0fc19dc6 240ca1cc 2de92c6f 4a7484aa 5cb0a9dc 76f988da " +
    "983e5152 a831c66d b00327c8 bf597fc7 c6e00bf3 d5a79147 06ca6351 14292967 27b70a85 2e1b2138 4d2c6dfc 53380d13 " +
    "650a7354 766a0abb 81c2c92e 92722c85 a2bfe8a1 a81a664b c24b8b70 c76c51a3 d192e819 d6990624 f40e3585 106aa070 " +
    "19a4c116 1e376c08 2748774c 34b0bcb5 391c0cb3 4ed8aa4a 5b9cca4f 682e6ff3 748f82ee 78a5636f 84c87814 8cc70208 " +
    "90befffa a4506ceb bef9a3f7 c67178f2").split(" ").map((word) => parseInt(word, 16)),
);

/** SHA-256, FIPS 180-4, 32 bytes. In this file because WebCrypto's is asynchronous, and absent on plain http pages. */
export function sha256(bytes) {
  const blocks = Math.floor((bytes.length + 8) / 64) + 1;
  const padded = new Uint8Array(64 * blocks);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = viewOf(padded);
  view.setUint32(64 * blocks - 8, Math.floor(bytes.length / 0x20000000));
  view.setUint32(64 * blocks - 4, (bytes.length << 3) >>> 0);
  const h = Int32Array.of(
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
  );
  const w = new Int32Array(64);
  for (let block = 0; block < blocks; block++) {
    for (let t = 0; t < 16; t++) w[t] = view.getInt32(64 * block + 4 * t);
    for (let t = 16; t < 64; t++) {
      const p = w[t - 15];
      const q = w[t - 2];
      const s0 = ((p >>> 7) | (p << 25)) ^ ((p >>> 18) | (p << 14)) ^ (p >>> 3);
      const s1 = ((q >>> 17) | (q << 15)) ^ ((q >>> 19) | (q << 13)) ^ (q >>> 10);
      w[t] = (w[t - 16] + s0 + w[t - 7] + s1) | 0;
    }
    let [a, b, c, d, e, f, g, k] = h;
    for (let t = 0; t < 64; t++) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (k + s1 + ((e & f) ^ (~e & g)) + SHA_K[t] + w[t]) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      k = g; g = f; f = e; e = (d + t1) | 0; d = c; c = b; b = a; a = (t1 + t2) | 0;
    }
    [a, b, c, d, e, f, g, k].forEach((value, i) => { h[i] = (h[i] + value) | 0; });
  }
  const out = new Uint8Array(32);
  h.forEach((word, i) => viewOf(out).setInt32(4 * i, word));
  return out;
}

// ------------------------------------------------------------------------------------------------ 2 generator

export const WEIGHTS = 1;
export const UNIFORMS = 2;
const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];

/** Threefry-2x32-20 (Salmon et al., SC 2011): encrypt the counter (c0, c1) under `key`, two words each. */
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

/** The key of a 64-bit number: (low word, high word). A number up to 2**53, a BigInt, or 16 hexadecimal digits. */
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

/** A new key that depends on `key` and on one 64-bit `number` (a stream, a round, a slot). */
export const fold = (key, number) => threefry2x32(key, ...keyOf(number));

/** The first `n` words of the key's stream, Uint32Array: block i has counter (i, 0) and gives words 2i and 2i + 1. */
export function words(key, n) {
  const out = new Uint32Array(n);
  for (let i = 0; i < n; i += 2) {
    const [x0, x1] = threefry2x32(key, i / 2, 0);
    out[i] = x0;
    if (i + 1 < n) out[i + 1] = x1;
  }
  return out;
}

export const weightsKey = (seed) => fold(keyOf(seed), WEIGHTS);

/** The sign bit of each of `d` frozen weights, Uint8Array of 0 (plus) or 1 (minus): bit j % 32 of word j div 32. */
export function signBits(seed, d) {
  const stream = words(weightsKey(seed), Math.ceil(d / 32));
  return Uint8Array.from({ length: d }, (_, j) => (stream[j >>> 5] >>> (j & 31)) & 1);
}

export const uniformsKey = (seed, round, slot) => fold(fold(fold(keyOf(seed), UNIFORMS), round), slot);

/** `n` shared uniforms, Uint16Array: the low and then the high half of each word. */
export function uniforms16(key, n) {
  const stream = words(key, Math.ceil(n / 2));
  return Uint16Array.from({ length: n }, (_, i) => (i & 1 ? stream[i >>> 1] >>> 16 : stream[i >>> 1] & 0xffff));
}

/**
 * The uniforms that one device and the aggregator have in common for one mask. `seed` as keyOf takes it; `stratum`
 * [k, K]: the k-th of K devices whose uniforms are stratified; null: on its own.
 */
export class Shared {
  constructor({ seed, round, job, device, index = 0, stratum = null }) {
    if (stratum && !(stratum[0] >= 0 && stratum[0] < stratum[1] && stratum[1] <= 65535)) {
      throw new RangeError(`a stratum is [k, K] with 0 <= k < K <= 65535, found [${stratum}]`);
    }
    Object.assign(this, { seed, round, job, device, index, stratum });
  }

  /** `d` uniforms, Uint16Array. */
  uniforms(d) {
    const who = this.stratum ? "" : this.device;
    const name = sha256(new TextEncoder().encode(`${this.job}/${who}/${this.index}`));
    const slot = viewOf(name).getBigUint64(0, true);
    const key = uniformsKey(this.seed, this.round, slot);
    if (!this.stratum) return uniforms16(key, d);
    const [k, of] = this.stratum;
    const pairs = uniforms16(key, 2 * d);
    return Uint16Array.from({ length: d }, (_, i) => {
      const turn = Math.floor((pairs[2 * i + 1] * of) / 65536);
      return Math.floor((((k + turn) % of) * 65536 + pairs[2 * i]) / of);
    });
  }
}

// ------------------------------------------------------------------------------------------- 3 mask and theta

export const CLAMP = 655;
export const MAX_D = 2 ** 28;
const ONE = 65536;

/** Probability of each level in units of 2**-16, Uint16Array [top + 1]. */
export function table(top, clamp = CLAMP) {
  const span = ONE - 2 * clamp;
  return Uint16Array.from({ length: top + 1 }, (_, l) => clamp + Math.floor((2 * span * l + top) / (2 * top)));
}

export const EXACT_ONE = 4096;
export const EXACT_LIMIT = 2 ** 30 - 1;
export const MAX_EXACT = 65536;

/**
 * The global probabilities: `level` Uint16Array [d] of 0..top, and the model's `exact` values, Int32Array [e] in units
 * of 2**-12. A mask is a Uint8Array [d] of 0/1.
 */
export class Theta {
  constructor(level, top, clamp = CLAMP, exact = new Int32Array(0)) {
    if (!(top >= 1 && top <= 65535 && clamp >= 1 && clamp < ONE / 2 && level.length >= 1 && level.length <= MAX_D)) {
      throw new RangeError(`no theta has top ${top}, clamp ${clamp}, d ${level.length}`);
    }
    for (const l of level) if (l > top) throw new RangeError(`a level is 0 .. ${top}, found ${l}`);
    this.level = level;
    this.top = top;
    this.clamp = clamp;
    if (exact.length > MAX_EXACT || exact.some((value) => Math.abs(value) > EXACT_LIMIT)) {
      throw new RangeError(`at most ${MAX_EXACT} exact values of ${EXACT_LIMIT} either way`);
    }
    this.exact = exact;
  }

  get d() {
    return this.level.length;
  }

  /** Probabilities in units of 2**-16, Uint16Array [d]. */
  q16() {
    const probability = table(this.top, this.clamp);
    return this.level.map((l) => probability[l]);
  }

  /** 16 bytes that name exactly these probabilities. */
  digest() {
    const layout = new Uint8Array(8 + 2 * this.d + 4 * this.exact.length);
    putHead(viewOf(layout), this);
    const view = viewOf(layout);
    for (let i = 0; i < this.d; i++) view.setUint16(8 + 2 * i, this.level[i], true);
    this.exact.forEach((value, i) => view.setInt32(8 + 2 * this.d + 4 * i, value, true));
    return sha256(layout).slice(0, 16);
  }
}

function putHead(view, theta) {
  view.setUint32(0, theta.d, true);
  view.setUint16(4, theta.top, true);
  view.setUint16(6, theta.clamp, true);
}

function checkMask(mask, d) {
  if (mask.length !== d || mask.some((bit) => bit > 1)) throw new RangeError(`a mask is ${d} times 0 or 1`);
}

// ----------------------------------------------------------------------------------------------- 4 model spec

// What a layer must have, and what it may have with the value that it has otherwise (and that is not written down).
const OPS = {
  linear: [["weight", "bias"]],
  conv2d: [["weight", "bias", "stride", "padding"], { groups: 1, dilation: [1, 1] }],
  relu: [[]],
  relu6: [[]],
  gelu: [[], { approximate: "none" }],
  silu: [[]],
  tanh: [[]],
  sigmoid: [[]],
  maxpool2d: [["size"]],
  avgpool2d: [["size"]],
  mean: [["axes"]],
  flatten: [[]],
  reshape: [["shape"]],
  permute: [["order"]],
  groupnorm: [["groups"], { scale: null, shift: null }],
  layernorm: [["dims"], { scale: null, shift: null }],
  rmsnorm: [["dims"], { scale: null }],
  add: [["sources"]],
  concat: [["sources", "axis"]],
};
const MAX_ACTIVATION = 2 ** 28;
const MAX_DIMENSIONS = 6;

/** Canonical JSON: sorted keys, no spaces, integers and ASCII strings only. */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
}

/**
 * The spec in its canonical JSON, a plain object with `d` and `e`, its masked weights and exact values, and `digest` (32
 * bytes) added. Throws `spec`.
 */
export function readSpec(bytes) {
  let spec;
  try {
    if (bytes.length > 1 << 20) fail("spec", `a spec is at most ${1 << 20} bytes, found ${bytes.length}`);
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    const keys = ["version", "name", "seed", "input", "range", "classes", "layers", "tensors"];
    spec = listed(JSON.parse(text), keys, { loss: "cross-entropy" });
    spec.layers = spec.layers.map((layer) => {
      const [must, may = {}] = OPS[layer.op];
      return listed(layer, ["op", ...must], must.includes("sources") ? may : { ...may, source: null });
    });
    spec.tensors = spec.tensors.map((tensor) =>
      tensor.kind === "exact"
        ? listed(tensor, ["name", "shape", "kind"], { start: 0 })
        : listed(tensor, ["name", "shape", "scale"], { kind: "masked" }));
    if (canonical(spec) !== text) fail("spec", "the JSON is not in canonical form");
    checkSpec(spec);
  } catch (error) {
    if (error instanceof ProtocolError) throw error;
    fail("spec", `not a model spec: ${error.message}`);
  }
  return { ...spec, d: entries(spec, "masked"), e: entries(spec, "exact"), digest: sha256(bytes) };
}

const kindOf = (tensor) => tensor.kind ?? "masked";
const sizesOf = (spec, kind) => spec.tensors.filter((t) => kindOf(t) === kind).map((t) => product(t.shape));
/** How many entries tensors of `kind` have: masked, frozen or exact. */
export const entries = (spec, kind) => sizesOf(spec, kind).reduce((a, b) => a + b, 0);

/** The weights of a read spec that are under its mask, Float32Array [d]; or those of kind "frozen". */
export function weights(spec, kind = "masked") {
  const signs = signBits(spec.seed, entries(spec, "masked") + entries(spec, "frozen"));
  const out = new Float32Array(entries(spec, kind));
  const cell = new DataView(new ArrayBuffer(4));
  let [from, to] = [0, 0];
  for (const tensor of spec.tensors.filter((t) => kindOf(t) !== "exact")) {
    cell.setUint32(0, tensor.scale);
    const c = cell.getFloat32(0);
    const size = product(tensor.shape);
    if (kindOf(tensor) === kind) for (let i = 0; i < size; i++) out[to++] = signs[from + i] ? -c : c;
    from += size;
  }
  return out;
}

/** What a read spec's exact values begin with, Int32Array [e] in units of 2**-12. */
export function begin(spec) {
  const starts = spec.tensors.filter((t) => kindOf(t) === "exact");
  return Int32Array.from(starts.flatMap((t) => new Array(product(t.shape)).fill((t.start ?? 0) * EXACT_ONE)));
}

const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
/** The entries of `value` that are named in `keys`, and those of `defaults` where they are not the default. */
function listed(value, keys, defaults = {}) {
  const other = Object.keys(defaults).filter(
    (key) => key in value && canonical(value[key]) !== canonical(defaults[key]),
  );
  return Object.fromEntries([...keys, ...other].map((key) => [key, value[key]]));
}

function checkSpec(spec) {
  const rule = (holds, text) => { if (!holds) fail("spec", text); };
  const integers = (what, values, low, high, least, most) =>
    rule(
      Array.isArray(values) && values.length >= least && values.length <= most &&
        values.every((v) => Number.isInteger(v) && v >= low && v <= high),
      `${what}: ${least} to ${most} integers ${low} .. ${high} expected, found ${canonical(values)}`,
    );
  rule(spec.version === 1, `spec version ${spec.version}; this program reads 1`);
  rule(typeof spec.name === "string" && NAME.test(spec.name), "a model's name is [a-z0-9-], at most 63 long");
  rule(typeof spec.seed === "string" && /^[0-9a-f]{16}$/.test(spec.seed), "a seed is 16 hexadecimal digits");
  integers("input", spec.input, 1, 1 << 20, 1, 3);
  integers("range", spec.range, -(2 ** 31), 2 ** 31 - 1, 2, 2);
  const { loss = "cross-entropy" } = spec;
  rule(loss === "cross-entropy" || loss === "mse", `loss is cross-entropy or mse, found ${loss}`);
  integers("classes", [spec.classes], loss === "mse" ? 1 : 2, 1 << 16, 1, 1);
  rule(product(spec.input) <= MAX_ACTIVATION, "the input is too large");
  rule(spec.range[0] < spec.range[1], "range is (low, high) with low < high");
  rule(spec.tensors.length > 0, "a model without a masked tensor has nothing to learn");
  const shapes = new Map();
  const kinds = new Map();
  for (const { name, shape, scale, kind = "masked", start = 0 } of spec.tensors) {
    rule(typeof name === "string" && /^[A-Za-z0-9_.]{1,128}$/.test(name), "a tensor's name is [A-Za-z0-9_.]");
    integers(name, shape, 1, MAX_D, 1, 4);
    rule(["masked", "frozen", "exact"].includes(kind), `${name} is masked, frozen or exact, found ${kind}`);
    if (kind === "exact") integers(`start of ${name}`, [start], 0, 1, 1, 1);
    else integers(`scale of ${name}`, [scale], 1, 0x7f7fffff, 1, 1);
    shapes.set(name, shape);
    kinds.set(name, kind);
  }
  const d = entries(spec, "masked");
  rule(d >= 1 && d + entries(spec, "frozen") <= MAX_D, `1 masked weight at least, ${MAX_D} with frozen ones at most`);
  rule(entries(spec, "exact") <= MAX_EXACT, `at most ${MAX_EXACT} exact values`);
  const used = spec.layers.flatMap(({ weight = null, bias = null, scale = null, shift = null }) =>
    [weight, bias, scale, shift].filter((n) => n !== null));
  rule(
    same(used, spec.tensors.map((t) => t.name)) && shapes.size === used.length,
    "tensors must be listed once each, in the order in which the layers use them",
  );
  for (const { scale = null, shift = null } of spec.layers) {
    for (const name of [scale, shift]) rule(name === null || kinds.get(name) === "exact", `${name} is not exact`);
  }
  const values = [spec.input];
  const taken = new Set([spec.layers.length]);
  spec.layers.forEach((layer, number) => {
    const several = "sources" in layer;
    const takes = several ? layer.sources : [layer.source ?? number];
    integers(`source of layer ${number}`, takes, 0, number, several ? 2 : 1, 1024);
    rule(layer.source !== number, `layer ${number}: source ${number} is the value before; leave it out`);
    takes.forEach((value) => taken.add(value));
    values.push(shapeAfter(layer, takes.map((value) => values[value]), shapes, rule, integers, number));
    const after = values[number + 1];
    rule(
      after.length <= MAX_DIMENSIONS && Math.min(...after) >= 1 && product(after) <= MAX_ACTIVATION,
      `layer ${number} gives [${after}]`,
    );
  });
  const last = values[spec.layers.length];
  rule(same(last, [spec.classes]), `the last layer gives [${last}], the model has ${spec.classes} classes`);
  values.forEach((_, value) => rule(taken.has(value), `nothing takes what layer ${value - 1} gives`));
}

/** The shape that a layer gives for inputs of shapes `xs`. */
function shapeAfter(layer, xs, shapes, rule, integers, number) {
  const [x] = xs;
  const rank = x.length;
  const fits = (holds) => rule(holds, `layer ${number} (${layer.op}) does not take [${xs.join("] and [")}]`);
  const w = shapes.get(layer.weight);
  if (layer.bias !== undefined && layer.bias !== null) {
    rule(same(shapes.get(layer.bias), [w[0]]), `layer ${number}: ${layer.bias} has the wrong shape`);
  }
  const affine = (shape) => {
    for (const name of [layer.scale, layer.shift]) {
      rule(!name || same(shapes.get(name), shape), `layer ${number}: ${name} has the wrong shape`);
    }
  };
  switch (layer.op) {
    case "linear":
      fits(w.length === 2 && w[1] === x[rank - 1]);
      return [...x.slice(0, -1), w[0]];
    case "conv2d": {
      const { groups = 1, dilation = [1, 1], stride, padding } = layer;
      integers("stride", stride, 1, 1024, 2, 2);
      integers("padding", padding, 0, 1024, 2, 2);
      integers("groups", [groups], 1, 1 << 20, 1, 1);
      integers("dilation", dilation, 1, 1024, 2, 2);
      fits(rank === 3 && w.length === 4 && w[1] * groups === x[0] && w[0] % groups === 0);
      const side = (i) =>
        Math.floor((x[i + 1] + 2 * padding[i] - dilation[i] * (w[i + 2] - 1) - 1) / stride[i]) + 1;
      return [w[0], side(0), side(1)];
    }
    case "gelu":
      rule([undefined, "tanh"].includes(layer.approximate), `layer ${number}: approximate is none or tanh`);
      return x;
    case "maxpool2d":
    case "avgpool2d":
      integers("size", layer.size, 1, 1024, 2, 2);
      fits(rank === 3);
      return [x[0], Math.floor(x[1] / layer.size[0]), Math.floor(x[2] / layer.size[1])];
    case "mean":
      integers("axes", layer.axes, 0, rank - 1, 1, MAX_DIMENSIONS);
      fits(layer.axes.length < rank && layer.axes.every((axis, i) => i === 0 || axis > layer.axes[i - 1]));
      return x.filter((_, axis) => !layer.axes.includes(axis));
    case "flatten":
      return [product(x)];
    case "reshape":
      integers("shape", layer.shape, 1, MAX_ACTIVATION, 1, MAX_DIMENSIONS);
      fits(product(layer.shape) === product(x));
      return layer.shape;
    case "permute":
      integers("order", layer.order, 0, rank - 1, rank, rank);
      fits(new Set(layer.order).size === rank);
      return layer.order.map((axis) => x[axis]);
    case "groupnorm":
      integers("groups", [layer.groups], 1, 1 << 20, 1, 1);
      fits(x[0] % layer.groups === 0 && product(x) > layer.groups);
      affine(x.slice(0, 1));
      return x;
    case "layernorm":
    case "rmsnorm":
      integers("dims", [layer.dims], 1, rank, 1, 1);
      fits(product(x.slice(rank - layer.dims)) > 1);
      affine(x.slice(rank - layer.dims));
      return x;
    case "add":
      fits(xs.every((other) => same(other, x)));
      return x;
    case "concat": {
      integers("axis", [layer.axis], 0, rank - 1, 1, 1);
      const rest = (shape) => shape.map((side, axis) => (axis === layer.axis ? 0 : side));
      fits(xs.every((other) => same(rest(other), rest(x))));
      return x.map((side, axis) => (axis === layer.axis ? xs.reduce((sum, other) => sum + other[axis], 0) : side));
    }
    default: // elementwise
      return x;
  }
}

// --------------------------------------------------------------------------------------------------- 5 codecs

/** Append `value` in seven bits a byte, least significant first. */
function putVarint(out, value) {
  for (; value > 127; value = Math.floor(value / 128)) out.push((value % 128) | 128);
  out.push(value);
}

/** [value, place after it] of the number at `at`; the shortest form only, below 2**32. */
function getVarint(bytes, at) {
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

/** 5.10: how far exact values have come, from `before` to `after`, both Int32Array [e]. */
export const exact = {
  ID: 20,
  NAME: "exact",
  REACH: 2 ** 14,

  encode(after, before) {
    const out = [];
    after.forEach((value, i) => {
      const moved = value - before[i];
      putVarint(out, moved >= 0 ? 2 * moved : -2 * moved - 1);
    });
    return Uint8Array.from(out);
  },

  /** `after` again; no value may have moved by more than `reach`. */
  decode(payload, before, reach = 2 * EXACT_LIMIT) {
    let at = 0;
    const after = before.map((value) => {
      let number;
      [number, at] = getVarint(payload, at);
      const moved = number % 2 ? -(number + 1) / 2 : number / 2;
      if (Math.abs(moved) > reach || Math.abs(value + moved) > EXACT_LIMIT) {
        fail("codec", `exact: a value moves ${reach} at most, to ${EXACT_LIMIT} at most, either way`);
      }
      return value + moved;
    });
    if (at !== payload.length) fail("codec", `exact: ${payload.length - at} bytes after ${before.length} values`);
    return after;
  },

  /** `values` (numbers) as a device reports them: the nearest integers, no further from `before` than REACH. */
  quantised(values, before) {
    return before.map((was, i) => {
      const [low, high] = [Math.max(was - exact.REACH, -EXACT_LIMIT), Math.min(was + exact.REACH, EXACT_LIMIT)];
      return Math.min(Math.max(Math.round(values[i] * EXACT_ONE), low), high);
    });
  },

  /** As `encode` with its length in front; nothing where there are no values. */
  put(after, before) {
    if (!before.length) return new Uint8Array(0);
    const coded = exact.encode(after, before);
    const size = [];
    putVarint(size, coded.length);
    return concat([Uint8Array.from(size), coded]);
  },

  /** [values, place after them] of what `put` wrote at `at`. */
  take(payload, at, before) {
    if (!before.length) return [before, at];
    const [size, start] = getVarint(payload, at);
    if (start + size > payload.length) fail("codec", `exact: ${size} bytes expected at ${start}`);
    return [exact.decode(payload.subarray(start, start + size), before), start + size];
  },
};

/** 5.1: one bit per weight, least significant bit first. */
export const packed = {
  ID: 1,
  NAME: "packed",

  draw(scores, theta, shared, random) {
    return packed.encode(drawMask(scores, random), theta);
  },

  encode(mask, theta) {
    checkMask(mask, theta.d);
    return packBits(mask);
  },

  decode(payload, theta) {
    if (payload.length !== Math.ceil(theta.d / 8)) fail("codec", `packed mask of ${payload.length} bytes`);
    return unpackBits(payload, theta.d, "packed mask");
  },
};

/** A mask drawn from scores (logits); `random` gives private numbers in 0 .. 1. */
const drawMask = (scores, random) => Uint8Array.from(scores, (s) => (random() < 1 / (1 + Math.exp(-s)) ? 1 : 0));

function packBits(bits) {
  const out = new Uint8Array(Math.ceil(bits.length / 8));
  for (let i = 0; i < bits.length; i++) out[i >>> 3] |= bits[i] << (i & 7);
  return out;
}

function unpackBits(bytes, n, what) {
  for (let i = n; i < 8 * bytes.length; i++) {
    if ((bytes[i >>> 3] >>> (i & 7)) & 1) fail("codec", `${what}: padding bits must be zero`);
  }
  return Uint8Array.from({ length: n }, (_, i) => (bytes[i >>> 3] >>> (i & 7)) & 1);
}

/** 5.2: the mask coded under the probabilities that both sides hold. */
export const rans = {
  ID: 2,
  NAME: "rans",

  draw(scores, theta, shared, random) {
    return rans.encode(drawMask(scores, random), theta);
  },

  encode(mask, theta) {
    checkMask(mask, theta.d);
    const { place, sizes, contexts } = layout(theta);
    const symbols = new Uint8Array(contexts.length);
    for (let i = 0; i < mask.length; i++) symbols[place[i] >>> 2] |= mask[i] << (place[i] & 3);
    const share = shares(symbols, contexts, sizes);
    const head = new Uint8Array(2 * sizes.length);
    share.forEach((value, b) => viewOf(head).setUint16(2 * b, value, true));
    return concat([head, ansEncode(symbols, contexts, share.map(nibbleFrequencies))]);
  },

  decode(payload, theta) {
    const { place, sizes, contexts } = layout(theta);
    const used = sizes.length;
    if (payload.length < 2 * used) fail("codec", `rans mask: ${used} bucket shares need ${2 * used} bytes`);
    const share = sizes.map((_, b) => viewOf(payload).getUint16(2 * b, true));
    if (share.some((p) => p < 1 || p > 4095)) fail("codec", "rans mask: a bucket's share of ones is 1 .. 4095");
    const symbols = ansDecode(payload.subarray(2 * used), contexts, share.map(nibbleFrequencies));
    const mask = new Uint8Array(theta.d);
    let ones = 0;
    for (let i = 0; i < mask.length; i++) {
      mask[i] = (symbols[place[i] >>> 2] >>> (place[i] & 3)) & 1;
      ones += mask[i];
    }
    if (symbols.reduce((sum, s) => sum + NIBBLE_ONES[s], 0) !== ones) {
      fail("codec", "rans mask: padding bits must be zero");
    }
    if (!same(share, shares(symbols, contexts, sizes))) {
      fail("codec", "rans mask: a bucket's share of ones is not that of its bits");
    }
    return mask;
  },
};

const NIBBLE_ONES = Array.from({ length: 16 }, (_, s) => (s & 1) + ((s >> 1) & 1) + ((s >> 2) & 1) + (s >> 3));

/**
 * Weights by bucket: `sizes` of the occupied buckets in ascending order; `place` of each weight among the bits, four to
 * a symbol, a bucket beginning on a symbol; `contexts` the occupied bucket of each symbol, counted from 0.
 */
function layout(theta) {
  const bucket = theta.q16().map((q) => q >>> 10);
  const count = new Uint32Array(64);
  for (const b of bucket) count[b]++;
  const next = new Uint32Array(64);
  const sizes = [];
  let symbol = 0;
  const runs = [];
  count.forEach((size, b) => {
    if (!size) return;
    next[b] = 4 * symbol;
    runs.push([symbol, (symbol += Math.ceil(size / 4))]);
    sizes.push(size);
  });
  const contexts = new Uint8Array(symbol);
  runs.forEach(([start, end], b) => contexts.fill(b, start, end));
  const place = new Uint32Array(theta.d);
  for (let i = 0; i < place.length; i++) place[i] = next[bucket[i]]++;
  return { place, sizes, contexts };
}

/** Share of ones of each occupied bucket in 4096ths, rounded half up, kept off 0 and 4096. */
function shares(symbols, contexts, sizes) {
  const ones = sizes.map(() => 0);
  for (let i = 0; i < symbols.length; i++) ones[contexts[i]] += NIBBLE_ONES[symbols[i]];
  return sizes.map((size, b) => Math.min(4095, Math.max(1, Math.floor((8192 * ones[b] + size) / (2 * size)))));
}

/** Frequency of each four-bit symbol when a share p of 4096 bits is set; they sum to 4096. */
function nibbleFrequencies(p) {
  const q = 4096 - p;
  const byOnes = [0, 1, 2, 3, 4].map((k) => Math.max(1, Math.floor((p ** k * q ** (4 - k)) / 2 ** 36)));
  const frequency = NIBBLE_ONES.map((k) => byOnes[k]);
  const likeliest = p > 2048 ? 15 : 0;
  frequency[likeliest] += 4096 - frequency.reduce((a, b) => a + b);
  return frequency;
}

// 5.3: interleaved rANS (Duda, arXiv 1311.2540; Giesen, arXiv 1402.3392). A stack: written backwards, read forwards.

const LOW = 65536;

const lanesOf = (n) => 2 ** Math.min(10, Math.max(0, 32 - Math.clz32(n) - 11));

const cumulate = (frequency) => {
  let sum = 0;
  return frequency.map((f) => (sum += f) - f);
};

/** Code `symbols` [n], each under row `contexts[i]` of `frequency`, whose rows sum to 4096. */
export function ansEncode(symbols, contexts, frequency, lanes = lanesOf(symbols.length)) {
  const n = symbols.length;
  const cumulative = frequency.map(cumulate);
  const state = new Uint32Array(lanes).fill(LOW);
  const out = new Uint16Array(n); // at most one word a symbol
  let at = n;
  for (let i = n - 1; i >= 0; i--) {
    const f = frequency[contexts[i]][symbols[i]];
    let x = state[i % lanes];
    if (x >= f * 2 ** 20) {
      out[--at] = x & 0xffff;
      x >>>= 16;
    }
    const quotient = Math.floor(x / f);
    state[i % lanes] = quotient * 4096 + (x - quotient * f) + cumulative[contexts[i]][symbols[i]];
  }
  const bytes = new Uint8Array(4 * lanes + 2 * (n - at));
  const view = viewOf(bytes);
  state.forEach((x, lane) => view.setUint32(4 * lane, x, true));
  for (let k = at; k < n; k++) view.setUint16(4 * lanes + 2 * (k - at), out[k], true);
  return bytes;
}

/** The symbols, Uint8Array [contexts.length]. */
export function ansDecode(payload, contexts, frequency, lanes = lanesOf(contexts.length)) {
  const n = contexts.length;
  if (payload.length < 4 * lanes || payload.length % 2) {
    fail("codec", `rANS payload of ${payload.length} bytes cannot hold ${lanes} lanes and whole words`);
  }
  const view = viewOf(payload);
  const state = Uint32Array.from({ length: lanes }, (_, lane) => view.getUint32(4 * lane, true));
  if (state.some((x) => x < LOW)) fail("codec", "rANS payload: a lane's state is below 2**16");

  const cumulative = frequency.map(cumulate);
  const owner = frequency.map((row, c) => {
    const slots = new Uint8Array(4096);
    row.forEach((f, symbol) => slots.fill(symbol, cumulative[c][symbol], cumulative[c][symbol] + f));
    return slots;
  });
  const symbols = new Uint8Array(n);
  let at = 4 * lanes;
  for (let i = 0; i < n; i++) {
    const c = contexts[i];
    let x = state[i % lanes];
    const slot = x & 4095;
    const symbol = owner[c][slot];
    symbols[i] = symbol;
    x = frequency[c][symbol] * (x >>> 12) + slot - cumulative[c][symbol];
    if (x < LOW) {
      if (at === payload.length) fail("codec", "rANS payload ends before its last symbol");
      x = x * LOW + view.getUint16(at, true);
      at += 2;
    }
    state[i % lanes] = x;
  }
  if (at !== payload.length || state.some((x) => x !== LOW)) {
    fail("codec", "rANS payload does not end where its encoder began");
  }
  return symbols;
}

/** Frequencies that sum to 4096, at least 1 wherever a symbol occurs. */
function normalise(counts) {
  const total = counts.reduce((a, b) => a + b);
  const frequency = counts.map((count) => Math.max(Math.floor((count * 4096) / total), count ? 1 : 0));
  for (;;) {
    const spare = 4096 - frequency.reduce((a, b) => a + b);
    if (!spare) return frequency;
    frequency[frequency.indexOf(Math.max(...frequency))] += Math.max(spare, -1);
  }
}

/** 5.4: the global probabilities, the downlink. */
export const counts = {
  ID: 16,
  NAME: "counts",

  encode(theta) {
    const shift = lowBits(theta.top);
    const high = Uint8Array.from(theta.level, (l) => l >>> shift);
    const frequency = highFrequencies(high, (theta.top >>> shift) + 1);
    const coded = ansEncode(high, new Uint8Array(theta.d), [frequency]);
    const head = new Uint8Array(8 + 2 * frequency.length + 4);
    const view = viewOf(head);
    putHead(view, theta);
    frequency.forEach((f, symbol) => view.setUint16(8 + 2 * symbol, f, true));
    view.setUint32(head.length - 4, coded.length, true);
    const low = new Uint8Array(theta.d * shift);
    for (let i = 0; i < low.length; i++) low[i] = (theta.level[Math.floor(i / shift)] >>> i % shift) & 1;
    return concat([head, coded, packBits(low), exact.encode(theta.exact, new Int32Array(theta.exact.length))]);
  },

  decode(payload, d, e = 0) {
    if (payload.length < 8) fail("codec", `counts: a header of 8 bytes expected, found ${payload.length}`);
    const view = viewOf(payload);
    const [size, top, clamp] = [view.getUint32(0, true), view.getUint16(4, true), view.getUint16(6, true)];
    if (size !== d || size < 1 || size > MAX_D) fail("limit", `counts for ${size} weights, the model has ${d}`);
    if (top < 1 || clamp < 1 || clamp >= ONE / 2) fail("codec", `counts: top ${top}, clamp ${clamp} out of range`);
    const shift = lowBits(top);
    const at = 8 + 2 * ((top >>> shift) + 1) + 4;
    if (payload.length < at) fail("codec", `counts: ${payload.length} bytes cannot hold the frequencies`);
    const frequency = Array.from({ length: (top >>> shift) + 1 }, (_, s) => view.getUint16(8 + 2 * s, true));
    if (frequency.reduce((a, b) => a + b) !== 4096) fail("codec", "counts: frequencies do not sum to 4096");
    const end = at + view.getUint32(at - 4, true);
    const behind = end + Math.ceil((d * shift) / 8);
    if (payload.length < behind || (payload.length > behind && !e)) fail("codec", "counts: the lengths do not fit");
    const high = ansDecode(payload.subarray(at, end), new Uint8Array(d), [frequency]);
    if (!same(frequency, highFrequencies(high, frequency.length))) {
      fail("codec", "counts: the frequencies are not those of the levels");
    }
    const low = unpackBits(payload.subarray(end, behind), d * shift, "counts");
    const level = Uint16Array.from(high, (symbol, i) => {
      let bits = 0;
      for (let b = 0; b < shift; b++) bits |= low[i * shift + b] << b;
      return (symbol << shift) | bits;
    });
    if (level.some((l) => l > top)) fail("codec", `counts: a level above the top ${top}`);
    return new Theta(level, top, clamp, exact.decode(payload.subarray(behind), new Int32Array(e)));
  },
};

function highFrequencies(high, symbols) {
  const count = new Array(symbols).fill(0);
  for (const symbol of high) count[symbol]++;
  return normalise(count);
}

/** How many low bits of a level travel raw, so that at most 256 symbols are entropy coded. */
const lowBits = (top) => Math.max(0, 32 - Math.clz32(top) - 8);

/** 5.5: one byte for a block of weights, by minimal random coding with Hadamard candidates. */
export const hmrc = {
  ID: 3,
  NAME: "hmrc",
  TILT: 1.5,

  /** `scores` [d] logits; `random` gives private numbers in 0 .. 1; kappa bits of relative entropy per byte. */
  draw(scores, theta, shared, random, { kappa = 5, maxBlocks = 0 } = {}) {
    const { d, level } = theta;
    const q16 = theta.q16();
    const u = shared.uniforms(d);
    const known = Array.from(table(theta.top, theta.clamp), (q) => {
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
      const gain = ((hmrc.TILT / 4) * (s - logit)) / efficiency;
      const w = [0, 1, 2, 3].map((shift) => (((u[i] + 16384 * shift) & 65535) < q16[i] ? gain : 0));
      const at = 256 * (i % blocks);
      const r = ROW[Math.floor(i / blocks) % 255];
      spectrum[at + r[0]] += w[0] - w[2] + w[1] - w[3];
      spectrum[at + r[1]] += w[0] + w[2] - w[1] - w[3];
      spectrum[at + r[2]] += w[0] - w[2] - w[1] + w[3];
    }
    const out = [];
    putVarint(out, blocks);
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
  },

  decode(payload, theta, shared, maxBlocks = 0) {
    const [blocks, at] = getVarint(payload, 0);
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
  },
};

const PARITY = Uint8Array.from({ length: 256 }, (_, i) => {
  let bits = 0;
  for (let rest = i; rest; rest >>= 1) bits ^= rest & 1;
  return bits;
});
const ROW = Array.from({ length: 255 }, (_, p) => {
  const r1 = p + 1;
  const r2 = r1 < 128 ? r1 << 1 : (r1 << 1) ^ 0x11d;
  return [r1, r2, r1 ^ r2];
});

const blockLimit = (d, maxBlocks) => Math.min(Math.max(1, Math.floor(d / 8)), maxBlocks || Infinity);

/** The Walsh-Hadamard transform of 256 values, in place. */
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

/** 5.6: an exact mask, coded by where it differs from what shared uniforms give without training. */
export const crn = {
  ID: 4,
  NAME: "crn",

  /** The mask u < sigmoid(score); all its chance is in the shared uniforms. */
  draw(scores, theta, shared) {
    const u = shared.uniforms(theta.d);
    const mask = Uint8Array.from(u, (x, i) => (x < Math.round(65536 / (1 + Math.exp(-scores[i]))) ? 1 : 0));
    return crn.encode(mask, theta, shared);
  },

  encode(mask, theta, shared) {
    checkMask(mask, theta.d);
    const { base, members } = flipLayout(theta, shared);
    const [head, unary, rest, raw] = [[], [], [], []];
    for (const places of members) {
      const n = places.length;
      const flips = places.map((i) => mask[i] ^ base[i]);
      const f = flips.reduce((a, b) => a + b);
      putVarint(head, f);
      const { k, rare } = rice(n, f);
      if (k < 0) for (const bit of flips) raw.push(bit);
      else if (rare) {
        let before = -1;
        flips.forEach((bit, place) => {
          if (bit !== (2 * f <= n ? 1 : 0)) return;
          const gap = place - before - 1;
          before = place;
          for (let q = gap >>> k; q; q--) unary.push(0);
          unary.push(1);
          for (let b = 0; b < k; b++) rest.push((gap >>> b) & 1);
        });
      }
    }
    const bits = [unary, rest, raw].flat();
    return concat([Uint8Array.from(head), packBits(bits)]);
  },

  decode(payload, theta, shared) {
    const { base, members } = flipLayout(theta, shared);
    let at = 0;
    const plans = members.map((places) => {
      const n = places.length;
      let f;
      [f, at] = getVarint(payload, at);
      if (f > n) fail("codec", `crn: ${f} flips among ${n} weights`);
      return { places, n, f, ...rice(n, f) };
    });
    const bytes = payload.subarray(at);
    const bit = (i) => (bytes[i >>> 3] >>> (i & 7)) & 1;
    const coded = plans.filter(({ k }) => k >= 0).reduce((sum, { rare }) => sum + rare, 0);
    const quotients = new Uint32Array(coded);
    let tail = 0;
    for (let i = 0; i < coded; i++) {
      while (tail < 8 * bytes.length && !bit(tail)) {
        quotients[i]++;
        tail++;
      }
      if (tail++ >= 8 * bytes.length) fail("codec", "crn: the string of quotients ends too early");
    }
    const total = tail + plans.reduce((sum, { k, rare, n }) => sum + (k < 0 ? n : rare * k), 0);
    if (bytes.length !== Math.ceil(total / 8)) fail("codec", `crn: ${total} bits expected, found ${8 * bytes.length}`);
    for (let i = total; i < 8 * bytes.length; i++) if (bit(i)) fail("codec", "crn: padding bits must be zero");
    const mask = base;
    let raw = total - plans.reduce((sum, { k, n }) => sum + (k < 0 ? n : 0), 0);
    let next = 0;
    for (const { places, n, f, k, rare } of plans) {
      const flips = new Uint8Array(n).fill(k >= 0 && 2 * f > n ? 1 : 0);
      if (k < 0) {
        let ones = 0;
        for (let i = 0; i < n; i++) ones += flips[i] = bit(raw++);
        if (ones !== f) fail("codec", `crn: ${ones} flips where ${f} are stated`);
      } else {
        let place = -1;
        for (let i = 0; i < rare; i++) {
          let gap = quotients[next++] * 2 ** k;
          for (let b = 0; b < k; b++) gap += bit(tail++) * 2 ** b;
          place += gap + 1;
          if (place >= n) fail("codec", `crn: a flip at place ${place} of ${n}`);
          flips[place] ^= 1;
        }
      }
      for (let i = 0; i < n; i++) mask[places[i]] ^= flips[i];
    }
    return mask;
  },
};

const EDGES = [3, 6, 10, 13, 19, 26, 32, 38, 45, 54, 64, 77, 90, 102, 115, 128, 147, 166, 192, 224, 288];
/** 64 logit((x + 1/2) / 4096), about, by integer sums. */
const LOGIT = (() => {
  const out = new Int32Array(4096);
  let sum = 0;
  for (let x = 2049; x < 4096; x++) {
    sum += Math.floor(2 ** 34 / (x * (4096 - x)));
    out[x] = Math.floor((sum + 2 ** 15) / 2 ** 16);
    out[4095 - x] = -out[x];
  }
  return out;
})();

/** `base`, the mask without training; `members`, the weights of each bucket that is not empty. */
function flipLayout(theta, shared) {
  const u = shared.uniforms(theta.d);
  const q16 = theta.q16();
  const members = Array.from({ length: EDGES.length + 1 }, () => []);
  for (let i = 0; i < u.length; i++) {
    const distance = Math.abs(LOGIT[u[i] >>> 4] - LOGIT[q16[i] >>> 4]);
    let bucket = 0;
    while (bucket < EDGES.length && distance >= EDGES[bucket]) bucket++;
    members[bucket].push(i);
  }
  return { base: Uint8Array.from(u, (x, i) => (x < q16[i] ? 1 : 0)), members: members.filter((m) => m.length) };
}

/** Rice parameter k of a bucket with `f` flips among `n`, -1 for raw; `rare`: how many places are coded. */
function rice(n, f) {
  const rare = Math.min(f, n - f);
  if (!rare) return { k: 0, rare };
  if (5 * rare > 2 * n) return { k: -1, rare };
  const ratio = Math.floor(((n + rare) * 45426) / (65536 * rare));
  return { k: Math.max(0, 31 - Math.clz32(ratio)), rare };
}

/** 5.7: theta's levels under those of a theta that the receiver holds. */
export const delta = {
  ID: 17,
  NAME: "delta",

  encode(theta, base) {
    const { contexts, rows } = deltaContexts(base);
    const frequency = deltaRows(theta.level, theta.top, contexts, rows);
    const head = new Uint8Array(21);
    const view = viewOf(head);
    head[0] = delta.ID;
    head.set(base.digest(), 1);
    view.setUint16(17, theta.top, true);
    view.setUint16(19, theta.clamp, true);
    const stated = new Uint8Array(2 * rows * (theta.top + 1));
    frequency.flat().forEach((f, i) => viewOf(stated).setUint16(2 * i, f, true));
    const values = exact.put(theta.exact, base.exact);
    return concat([head, values, stated, ansEncode(theta.level, contexts, frequency)]);
  },

  decode(payload, base) {
    if (payload.length < 21 || payload[0] !== delta.ID) fail("codec", "delta: a header of 21 bytes expected");
    const view = viewOf(payload);
    if (!same(payload.subarray(1, 17), base.digest())) fail("theta-mismatch", "delta: coded under other probabilities");
    const [top, clamp] = [view.getUint16(17, true), view.getUint16(19, true)];
    if (top < 1 || top > 255 || base.top > 255 || (top + 1) * (base.top + 1) > 4096 || clamp < 1 || clamp >= ONE / 2) {
      fail("codec", `delta: top ${top}, clamp ${clamp} out of range`);
    }
    const { contexts, rows } = deltaContexts(base);
    const [values, start] = exact.take(payload, 21, base.exact);
    const at = start + 2 * rows * (top + 1);
    if (payload.length < at) fail("codec", "delta: the frequencies end too early");
    const frequency = Array.from({ length: rows }, (_, row) =>
      Array.from({ length: top + 1 }, (_, s) => view.getUint16(start + 2 * (row * (top + 1) + s), true)));
    if (frequency.some((row) => row.reduce((a, b) => a + b) !== 4096)) {
      fail("codec", "delta: the frequencies of a row do not sum to 4096");
    }
    const level = Uint16Array.from(ansDecode(payload.subarray(at), contexts, frequency));
    if (!deltaRows(level, top, contexts, rows).every((row, i) => same(row, frequency[i]))) {
      fail("codec", "delta: the frequencies are not those of the levels");
    }
    return new Theta(level, top, clamp, values);
  },
};

/** Of each weight the number of its base level among those that occur. */
function deltaContexts(base) {
  const there = new Uint8Array(base.top + 1);
  for (const l of base.level) there[l] = 1;
  let rows = 0;
  const number = Uint16Array.from(there, (used) => (used ? rows++ : 0));
  return { contexts: Uint16Array.from(base.level, (l) => number[l]), rows };
}

function deltaRows(level, top, contexts, rows) {
  const count = Array.from({ length: rows }, () => new Array(top + 1).fill(0));
  for (let i = 0; i < level.length; i++) count[contexts[i]][level[i]]++;
  return count.map(normalise);
}

/** 5.9: any mask, each tensor under its own number of ones; for the file of a finished model. */
export const tensors = {
  ID: 19,
  NAME: "tensors",

  encode(mask, sizes) {
    checkMask(mask, sizes.reduce((a, b) => a + b, 0));
    const starts = cumulate(sizes);
    const ones = sizes.map((n, t) => mask.subarray(starts[t], starts[t] + n).reduce((a, b) => a + b, 0));
    const head = [];
    ones.forEach((k) => putVarint(head, k));
    const { contexts, frequency, runs, lanes } = tensorModel(sizes, ones);
    if (!contexts.length) return Uint8Array.from(head);
    const symbols = new Uint8Array(contexts.length);
    for (const { at, n, symbol } of runs) {
      for (let i = 0; i < n; i++) symbols[symbol + (i >>> 2)] |= mask[at + i] << (i & 3);
    }
    return concat([Uint8Array.from(head), ansEncode(symbols, contexts, frequency, lanes)]);
  },

  decode(payload, sizes) {
    let at = 0;
    const ones = sizes.map((n) => {
      let k;
      [k, at] = getVarint(payload, at);
      if (k > n) fail("codec", `tensors mask: ${k} ones among ${n} weights`);
      return k;
    });
    const starts = cumulate(sizes);
    const mask = new Uint8Array(sizes.reduce((a, b) => a + b, 0));
    sizes.forEach((n, t) => ones[t] === n && mask.fill(1, starts[t], starts[t] + n));
    const { contexts, frequency, runs, lanes } = tensorModel(sizes, ones);
    if (!contexts.length) {
      if (at !== payload.length) fail("codec", "tensors mask: nothing is left to tell");
      return mask;
    }
    const symbols = ansDecode(payload.subarray(at), contexts, frequency, lanes);
    for (const { at: start, n, symbol, k } of runs) {
      let found = 0;
      for (let i = 0; i < n; i++) found += mask[start + i] = (symbols[symbol + (i >>> 2)] >>> (i & 3)) & 1;
      if (n & 3 && symbols[symbol + (n >>> 2)] >>> (n & 3)) fail("codec", "tensors mask: padding bits must be zero");
      if (found !== k) fail("codec", `tensors mask: ${found} ones, the payload says ${k}`);
    }
    return mask;
  },
};

/** The tensors with both kinds of bit as `runs` of symbols, the row of each symbol, the rows, and the lanes. */
function tensorModel(sizes, ones) {
  const starts = cumulate(sizes);
  const runs = [];
  const frequency = [];
  let symbol = 0;
  let rare = 0;
  sizes.forEach((n, t) => {
    const k = ones[t];
    if (k === 0 || k === n) return;
    rare += Math.min(k, n - k);
    runs.push({ at: starts[t], n, k, symbol });
    frequency.push(nibbleFrequencies(Math.min(4095, Math.max(1, Math.floor((8192 * k + n) / (2 * n))))));
    symbol += Math.ceil(n / 4);
  });
  const contexts = new Uint32Array(symbol);
  runs.forEach((run, row) => contexts.fill(row, run.symbol, runs[row + 1]?.symbol ?? symbol));
  return { contexts, frequency, runs, lanes: lanesOf(rare) };
}

/** The id table of mask codecs. */
export const CODECS = new Map([packed, rans, hmrc, crn].map((codec) => [codec.ID, codec]));

/**
 * The next theta: `total` [d], sum of weight times mask; `weight` of all `masks`; `unit` divides each weight; `top` of
 * the levels, 0 for exact ones.
 */
export function pool(total, weight, unit, masks, top, clamp) {
  const exact = weight / unit;
  if (!top && exact <= Math.min(Math.max(masks, 255), 65535)) {
    return new Theta(Uint16Array.from(total, (n) => n / unit), exact, clamp);
  }
  const levels = top || 255;
  // Two steps of 16 bits: 2^16 times a total need not fit 53 bits.
  const share = (n) => {
    const whole = Math.floor(n / weight);
    return whole * 65536 + Number((BigInt(n % weight) * 65536n + BigInt(Math.floor(weight / 2))) / BigInt(weight));
  };
  return new Theta(Uint16Array.from(total, (n) => Math.floor((share(n) * levels + 32768) / 65536)), levels, clamp);
}

const gcd = (a, b) => (b ? gcd(b, a % b) : a);

/** 5.8: theta as the masks that made it. */
export const relay = {
  ID: 18,
  NAME: "relay",
  MAX_WEIGHT: 2 ** 22,
  MAX_WORK: 2 ** 30,

  /** `parts`: {device, samples, codec, payloads}; `pooling`: {top, clamp, heaviest}; `values`: theta's exact ones. */
  encode(base, round, { top, clamp, heaviest }, parts, values = base.exact) {
    const head = new Uint8Array(31);
    const view = viewOf(head);
    head[0] = relay.ID;
    head.set(base.digest(), 1);
    view.setUint32(17, round, true);
    view.setUint16(21, top, true);
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
        putVarint(size, payload.length);
        out.push(Uint8Array.from(size), payload);
      }
    }
    return concat(out);
  },

  /** What is in a relay, its masks not decoded: what `encode` takes. */
  read(payload, base) {
    if (payload.length < 31 || payload[0] !== relay.ID) fail("codec", "relay: a header of 31 bytes expected");
    if (!same(payload.subarray(1, 17), base.digest())) fail("theta-mismatch", "relay: masks under other probabilities");
    const view = viewOf(payload);
    const [round, top, clamp] = [view.getUint32(17, true), view.getUint16(21, true), view.getUint16(23, true)];
    const [heaviest, devices] = [view.getUint32(25, true), view.getUint16(29, true)];
    if (clamp < 1 || clamp >= ONE / 2 || heaviest > relay.MAX_WEIGHT || !devices) {
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
      if (masks * base.d > relay.MAX_WORK) fail("limit", `relay: more than ${relay.MAX_WORK / base.d} masks`);
      const payloads = [];
      for (let k = 0; k < facts[5]; k++) {
        let size;
        [size, at] = getVarint(payload, at);
        payloads.push(take(size));
      }
      const device = String.fromCharCode(...name);
      if (!samples || !facts[5] || name.some((c) => c > 127) || (i && device <= parts[i - 1].device)) {
        fail("codec", `relay: ${device} without samples or masks, or out of order`);
      }
      parts.push({ device, samples, codec: facts[4], payloads });
    }
    if (at !== payload.length) fail("codec", "relay: bytes after the last mask");
    return { round, pooling: { top, clamp, heaviest }, parts, values };
  },

  decode(payload, base, seed, job, maxBlocks = 0) {
    const { round, pooling, parts, values } = relay.read(payload, base);
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
    const theta = pool(total, weight, unit, masks, pooling.top, pooling.clamp);
    return new Theta(theta.level, theta.top, theta.clamp, values);
  },
};

/** The mask codec of a wire id. */
export function codecById(id) {
  const known = [...CODECS.values()].map((codec) => `${codec.ID} ${codec.NAME}`).join(", ");
  return CODECS.get(id) ?? fail("kind", `codec ${id} is unknown; known: ${known}`);
}

// -------------------------------------------------------------------------------------- 6 frames and messages

export const MAX_FRAME = 2 ** 28;
export const Phase = { WAITING: 0, OPEN: 1, DONE: 2 };
export const Status = { ACCEPTED: 1, DUPLICATE: 2, LATE: 3, STALE: 4, INVALID: 5, NOT_SELECTED: 6 };

const NAME = /^[a-z0-9][a-z0-9-]{0,62}$/;

/** A cursor that knows where the bytes end. */
class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = viewOf(bytes);
    this.at = 0;
  }

  take(n) {
    if (this.at + n > this.bytes.length) fail("truncated", `${n} bytes expected at ${this.at} of ${this.bytes.length}`);
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
    return NAME.test(text) ? text : fail("field", `a name is [a-z0-9-], at most 63 long, found ${text}`);
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
    if (new TextDecoder("utf-8", { ignoreBOM: true }).decode(raw) !== value) throw new RangeError("text with half a character");
    return this.uint(size, raw.length).bytes(raw);
  }

  name(value) {
    if (!NAME.test(value)) throw new RangeError(`a name is a-z, 0-9 and '-', at most 63 characters, found ${value}`);
    return this.text(value, 1);
  }

  flag(value) {
    return this.uint(1, value ? 1 : 0);
  }
}

// id: [field of work, least, most, default]. Only what differs from its default travels.
const U32 = 2 ** 32 - 1;
const OPTIONS = new Map([
  [1, ["epochs", 1, 65535, 3]],
  [2, ["learning_rate", 1, U32, 100000]],
  [3, ["codec", 0, 255, 3]],
  [4, ["optimizer", 0, 1, 0]],
  [5, ["momentum", 0, 999999, 0]],
  [6, ["keep_optimizer", 0, 1, 0]],
  [7, ["straight_through", 0, 1, 0]],
  [8, ["kl", 0, U32, 0]],
  [9, ["sparsity", 0, U32, 0]],
  [10, ["entropy", 0, U32, 0]],
  [11, ["masks", 1, 255, 1]],
  [12, ["kappa", 1, 1000000, 5000]],
  [13, ["kappa_max", 1, 1000000, 24000]],
  [14, ["max_blocks", 0, 2 ** 28, 0]],
  [15, ["stratified", 0, 1, 0]],
  [16, ["mean_epochs", 0, 65535, 0]],
  [17, ["rate_decay", 0, 999999, 0]],
  [18, ["exact_rate", 1, U32, 1000]],
]);

function putWork(w, work) {
  const said = [...OPTIONS].filter(([, [name, , , standard]]) => work[name] !== standard);
  w.uint(1, said.length);
  said.forEach(([id, [name]]) => w.uint(1, id).uint(4, work[name]));
}

function getWork(r) {
  const work = Object.fromEntries([...OPTIONS.values()].map(([name, , , standard]) => [name, standard]));
  let last = 0;
  for (let left = r.uint(1); left > 0; left--) {
    const id = r.uint(1);
    const value = r.uint(4);
    const [name, least, most, standard] = OPTIONS.get(id) ?? fail("field", `option ${id} of the work is unknown`);
    if (id <= last) fail("field", `options stand in ascending order, found ${id} after ${last}`);
    if (value < least || value > most) fail("field", `${name} is ${least} .. ${most}, found ${value}`);
    if (value === standard) fail("field", `${name} is ${value} without being said`);
    work[name] = value;
    last = id;
  }
  if (work.kappa > work.kappa_max) fail("field", `kappa ${work.kappa} is above kappa_max ${work.kappa_max}`);
  return work;
}

/** 16 bytes that name what an update was made for: job, model (32 bytes) and the digest of theta (16 bytes). */
export function basis(job, model, theta) {
  if (!NAME.test(job) || model.length !== 32 || theta.length !== 16) throw new RangeError("a name, 32 and 16 bytes expected");
  return sha256(concat([new TextEncoder().encode(job), Uint8Array.of(0), model, theta])).slice(0, 16);
}

const some = (bytes) => bytes.some((byte) => byte !== 0);

// One entry per message: its kind on the wire, how to write it and how to read it. Fields stand in wire order.
// Digests are Uint8Arrays, `boot` is a BigInt.
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
      if (m.work.stratified) {
        if (m.selected.some((name, i) => i > 0 && m.selected[i - 1] >= name)) {
          fail("field", "under stratified uniforms the selected devices are listed in order, each once");
        }
        if (m.phase === Phase.OPEN && !m.selected.length) fail("field", "strata without the devices' names");
      }
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

/** One frame, Uint8Array. `message.type` is a key of MESSAGES. Throws RangeError for what nobody would accept. */
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

/** The message in `frame`. Throws a ProtocolError, and nothing else, for any other bytes. */
export function decode(frame) {
  if (frame.length < 8) fail("truncated", `a frame has at least 8 bytes, found ${frame.length}`);
  if (frame[0] !== 0x53 || frame[1] !== 0x4d) fail("magic", "a frame begins with SM");
  if (frame[2] !== PROTOCOL_VERSION) fail("version", `protocol version ${frame[2]}; this program speaks ${PROTOCOL_VERSION}`);
  const entry = BY_KIND.get(frame[3]) ?? fail("kind", `message kind ${frame[3]} is unknown; known: 1 .. 6`);
  const end = frame.length - 4;
  if (crc32(frame.subarray(0, end)) !== viewOf(frame).getUint32(end, true)) fail("checksum", "CRC-32 does not match");
  const reader = new Reader(frame.subarray(4, end));
  const message = { type: entry.type, ...entry.get(reader) };
  if (reader.at !== reader.bytes.length) fail("trailing-bytes", `${reader.bytes.length - reader.at} bytes too many`);
  return message;
}

// --------------------------------------------------------------------------------------------------- 7 chunks

export const CHUNK_BYTES = 60 * 1024;

/** 16 bytes that name `blob`. */
export const transferId = (blob) => sha256(blob).slice(0, 16);

/** `blob` as chunk messages of `size` bytes each. */
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

/** One transfer on its way in, begun with its first seen chunk. */
export class Assembly {
  constructor(chunk, limit) {
    if (chunk.total > limit) fail("limit", `a transfer of ${chunk.total} bytes; at most ${limit} are taken here`);
    this.first = chunk;
    this.parts = new Map();
    this.add(chunk);
  }

  /** Put `chunk` in its place; a repeat changes nothing. */
  add(chunk) {
    const { transfer, total, size } = this.first;
    if (!same(chunk.transfer, transfer) || chunk.total !== total || chunk.size !== size) {
      fail("field", "a chunk of another transfer");
    }
    if (!this.parts.has(chunk.index)) this.parts.set(chunk.index, chunk.data);
    return this;
  }

  get complete() {
    return this.parts.size === this.first.count;
  }

  get missing() {
    return Array.from({ length: this.first.count }, (_, i) => i).filter((i) => !this.parts.has(i));
  }

  /** The whole, once complete. */
  blob() {
    const whole = concat(Array.from({ length: this.first.count }, (_, i) => this.parts.get(i)));
    if (!same(transferId(whole), this.first.transfer)) fail("checksum", "a transfer's content does not match its id");
    return whole;
  }
}

// ----------------------------------------------------------------------------------------- 9.2 finished model

const MODEL_MAGIC = "SMK1";

/**
 * The file of a finished model: `spec` the bytes of its canonical form, `mask` Uint8Array [d], `values` Int32Array [e].
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

/** `{spec, mask, values}` of a finished model's file: weights(spec) times mask, and exact values in units of 2**-12. */
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
