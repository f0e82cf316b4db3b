// `node tests/vectors/verify.mjs`: the JavaScript client against v3.json, both ways, down to the error codes.
//
// make.py beside this file writes the literals and explains their recipes. Ends at the first disagreement, status 1.
// Another module to check in place of web/src/index.mjs, such as the built one, is the argument.

import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { isDeepStrictEqual } from "node:util";

const [module] = process.argv.slice(2);
const sm = await import(module ? pathToFileURL(resolve(module)) : "../../web/src/index.mjs");
const { bundleBytes, openBundle } = sm;
const vectors = JSON.parse(readFileSync(new URL("v3.json", import.meta.url), "ascii"));
const SEED = 0x5eed_0123_4567_89abn; // of make.py
const ascii = (text) => new TextEncoder().encode(text);
const words = (list) => list.map((word) => parseInt(word, 16));

let total = 0;

/** One section: `check` for each vector, and a line with how many agreed. */
function section(name, list, check) {
  list.forEach((vector, number) => {
    try {
      check(vector);
    } catch (error) {
      const about = JSON.stringify(vector);
      console.error(`${name}[${number}]: ${error.message}\n  ${about.length < 400 ? about : `${about.slice(0, 397)}...`}`);
      process.exit(1);
    }
  });
  total += list.length;
  console.log(`${name.padEnd(24)} ${String(list.length).padStart(4)}`);
}

function equal(found, wanted, what) {
  if (!isDeepStrictEqual(found, wanted)) throw new Error(`${what}: found ${show(found)}, stored ${show(wanted)}`);
}

const show = (value) => JSON.stringify(value, (_, v) => (typeof v === "bigint" ? `${v}n` : v))?.slice(0, 160);

/** Bytes against a stored blob: hexadecimal digits, or length and SHA-256. */
function equalBytes(found, stored, what) {
  if (typeof stored === "string") equal(sm.toHex(found), stored, what);
  else equal({ bytes: found.length, sha256: sm.toHex(sm.sha256(found)) }, stored, what);
}

function refuses(action, code, text = "") {
  try {
    action();
  } catch (error) {
    if (!(error instanceof sm.ProtocolError)) throw new Error(`${error.stack} escaped; ${code} expected`);
    if (![code].flat().includes(error.code)) equal(error.code, code, "error code");
    if (!error.message.includes(text)) equal(error.message, text, "error text");
    return;
  }
  throw new Error(`accepted; ${code} expected`);
}

const bytes16 = (values) => new Uint8Array(Uint16Array.from(values).buffer); // a little-endian machine, as all are

// --- 2 generator ---

const { generator } = vectors;
section("threefry2x32", generator.threefry2x32, ({ key, counter, out }) =>
  equal(sm.threefry2x32(words(key), ...words(counter)), words(out), "block"));
section("fold", generator.fold, ({ key, number, out }) => {
  equal(sm.fold(words(key), number), words(out), "key");
  equal(sm.fold(words(key), BigInt(`0x${number}`)), words(out), "key, number as BigInt");
});
section("words", generator.words, (v) =>
  equalBytes(new Uint8Array(sm.words(words(v.key), v.n).buffer), v.words, "stream"));
section("sign bits", generator.sign_bits, (v) => {
  equal(sm.weightsKey(v.seed), words(v.key), "key");
  const bits = sm.signBits(v.seed, v.d);
  const even = new sm.Theta(new Uint16Array(v.d).fill(1), 2);
  equalBytes(sm.packed.encode(bits, even), v.bits, "bits");
});
section("uniforms16", generator.uniforms16, (v) => {
  const key = sm.uniformsKey(v.seed, v.round, v.slot);
  equal(key, words(v.key), "key");
  equalBytes(bytes16(sm.uniforms16(key, v.n)), v.values, "values");
});

// --- 3, 5 theta, mask, codecs ---

section("tables", vectors.tables, (v) => equalBytes(bytes16(sm.table(v.max_level, v.clamp)), v.table, "table"));

const uniforms = (seed, slot, n) => sm.uniforms16(sm.uniformsKey(seed, 0, slot), n);

const LEVELS = {
  spread: (u, maxLevel) => Math.floor((u * (maxLevel + 1)) / 65536),
  polarised: (u, maxLevel) => (u < 26214 ? 0 : u >= 39322 ? maxLevel : Math.floor(((u - 26214) * (maxLevel + 1)) / 13108)),
  bottom: () => 0,
  top: (_, maxLevel) => maxLevel,
};
const BITS = {
  drawn: (v, q) => (v < q ? 1 : 0),
  against: (v, q) => (v < q ? 0 : 1),
  zeros: () => 0,
  ones: () => 1,
};

const thetaOf = (v, levels = v.levels, maxLevel = v.max_level) =>
  new sm.Theta(uniforms(v.seed, 0, v.d).map((u) => LEVELS[levels](u, maxLevel)), maxLevel, v.clamp);
const sharedOf = (v) => new sm.Shared({ seed: v.seed, round: 1, job: "job", device: "dev" });

section("shared uniforms", vectors.shared, (v) =>
  equalBytes(bytes16(new sm.Shared(v).uniforms(v.n)), v.values, "values"));

section("theta, mask, codecs", vectors.cases, (v) => {
  const theta = thetaOf(v);
  const q16 = theta.q16();
  const mask = Uint8Array.from(uniforms(v.seed, 1, v.d), (u, i) => BITS[v.mask](u, q16[i]));
  if (v.level) equal([...theta.level], v.level, "levels");
  if (v.bits) equal([...mask], v.bits, "mask");
  equalBytes(theta.digest(), v.digest, "theta digest");
  const shared = sharedOf(v);
  for (const codec of [sm.packed, sm.rans]) {
    const payload = codec.encode(mask, theta);
    equalBytes(payload, v[codec.NAME], codec.NAME);
    equal(codec.decode(payload, theta, shared), mask, `${codec.NAME}, decoded`);
    if (payload.length < 100) {
      for (let n = 0; n < payload.length; n++) refuses(() => codec.decode(payload.subarray(0, n), theta, shared), "codec");
    }
  }
  const coded = sm.counts.encode(theta);
  equalBytes(coded, v.counts, "counts");
  equal(sm.counts.decode(coded, v.d).level, theta.level, "counts, decoded");
});

section("hmrc", vectors.hmrc, (v) => {
  const theta = thetaOf(v);
  const shared = sharedOf(v);
  const q16 = theta.q16();
  const scores = Float32Array.from(uniforms(v.seed, 2, v.d), (w, i) =>
    Math.log(q16[i] / (65536 - q16[i])) + (w - 32768) / 32768);
  const chance = uniforms(v.seed, 3, v.d);
  let block = 0;
  const plan = { kappa: v.kappa, maxBlocks: v.max_blocks };
  const payload = sm.hmrc.draw(scores, theta, shared, () => chance[block++] / 65536, plan);
  equalBytes(payload, v.payload, "payload");
  equalBytes(sm.packed.encode(sm.hmrc.decode(payload, theta, shared, v.max_blocks), theta), v.mask, "mask");
});

section("delta", vectors.delta, (v) => {
  const [base, theta] = [thetaOf(v, v.base_levels, v.base_max_level), thetaOf(v)];
  const payload = sm.delta.encode(theta, base);
  equalBytes(payload, v.payload, "payload");
  equal(sm.delta.decode(payload, base), theta, "decoded");
});

section("exact values", vectors.exact, (v) => {
  const values = (list) => Int32Array.from(list);
  const [before, after] = [values(v.before), values(v.after)];
  const payload = sm.exact.encode(after, before);
  equalBytes(payload, v.payload, "payload");
  equal(sm.exact.decode(payload, before), after, "decoded");
  const plain = [thetaOf(v, v.base_levels, v.base_max_level), thetaOf(v)];
  const [base, theta] = plain.map((t, i) => new sm.Theta(t.level, t.maxLevel, t.clamp, [before, after][i]));
  equalBytes(base.digest(), v.base, "base digest");
  equalBytes(theta.digest(), v.theta, "theta digest");
  const whole = sm.counts.encode(theta);
  equalBytes(whole, v.counts, "counts");
  equal(sm.counts.decode(whole, v.d, after.length), theta, "counts, decoded");
  const changed = sm.delta.encode(theta, base);
  equalBytes(changed, v.delta, "delta");
  equal(sm.delta.decode(changed, base), theta, "delta, decoded");
  const { round, pooling, parts, values: told } = sm.relay.read(sm.fromHex(v.relay), base);
  equal(sm.relay.encode(base, round, pooling, parts, told), sm.fromHex(v.relay), "relay, encoded again");
  equalBytes(sm.relay.decode(sm.fromHex(v.relay), base, v.seed, "job").digest(), v.relayed, "relay's theta");
});

section("relay", vectors.relay, (v) => {
  const base = thetaOf({ ...v, clamp: 655 }, "spread", 10);
  const payload = sm.fromHex(v.payload);
  const { round, pooling, parts } = sm.relay.read(payload, base);
  equal(sm.relay.encode(base, round, pooling, parts.reverse()), payload, "encoded again");
  const theta = sm.relay.decode(payload, base, v.seed, "job");
  equal(theta.maxLevel, v.max_level, "max_level");
  equalBytes(bytes16(theta.level), v.level, "levels");
  equalBytes(theta.digest(), v.theta, "digest");
});

// --- 4 specs ---

section("specs", vectors.specs, (v) => {
  const spec = sm.readSpec(ascii(v.json));
  equalBytes(spec.digest, v.digest, "digest");
  equal(spec.d, v.d, "d");
  if (v.begin) {
    equal([...sm.begin(spec)], v.begin, "begin");
    equalBytes(new Uint8Array(sm.weights(spec, "frozen").buffer), v.frozen, "frozen weights");
  }
  const weights = new Uint8Array(sm.weights(spec).buffer);
  equalBytes(weights.subarray(0, 64), v.first_weights, "first weights");
  equalBytes(weights, v.weights, "weights");
});

// --- 9.2 finished models ---

section("finished models", vectors.models, (v) => {
  const spec = sm.readSpec(ascii(v.spec));
  const masked = spec.tensors.filter((tensor) => !tensor.kind);
  const sizes = masked.map((tensor) => tensor.shape.reduce((a, b) => a * b));
  const values = Int32Array.from(v.exact ?? []);
  const share = sizes.flatMap((n, t) => new Array(n).fill(v.shares[t]));
  const mask = Uint8Array.from(uniforms(v.seed, 1, spec.d), (u, i) => (u < share[i] ? 1 : 0));
  equalBytes(sm.packed.encode(mask, new sm.Theta(new Uint16Array(spec.d).fill(1), 2)), v.mask, "mask");
  const coded = sm.tensors.encode(mask, sizes);
  equalBytes(coded, v.tensors, "tensors");
  equal(sm.tensors.decode(coded, sizes), mask, "tensors, decoded");
  const file = sm.writeModel(ascii(v.spec), mask, values);
  equalBytes(file, v.file, "file");
  equal(sm.readModel(file).mask, mask, "file, read");
  equal(sm.readModel(file).values, values, "exact values, read");
  if (file.length < 1000) {
    for (let n = 0; n < file.length; n++) refuses(() => sm.readModel(file.subarray(0, n)), "bundle");
  }
});

// --- 6 messages ---

const BYTES = ["model", "theta", "transfer", "base", "delta", "basis", "data", "exact"];

function fromJson(stored) {
  const message = { ...stored };
  for (const field of BYTES) if (field in message) message[field] = sm.fromHex(message[field]);
  if ("payloads" in message) message.payloads = message.payloads.map(sm.fromHex);
  if ("boot" in message) message.boot = BigInt(`0x${message.boot}`);
  return message;
}

section("basis", vectors.bases, (v) =>
  equalBytes(sm.basis(v.job, sm.fromHex(v.model), sm.fromHex(v.theta)), v.basis, "basis"));
section("messages", vectors.frames, (v) => {
  const message = fromJson(v.message);
  const frame = sm.encode(message);
  equalBytes(frame, v.frame, v.name);
  equal(sm.decode(sm.fromHex(v.frame)), message, `${v.name}, decoded`);
  for (let n = 0; n < frame.length; n++) refuses(() => sm.decode(frame.subarray(0, n)), n < 8 ? "truncated" : "checksum");
});

// --- 7 chunks ---

section("chunks", vectors.chunking, (v) => {
  const blob = Uint8Array.from(uniforms(v.seed, 1, v.bytes), (u) => u % 256);
  const parts = sm.split(blob, v.size);
  equal(parts.length, v.frames.length, "number of chunks");
  const frames = parts.map((part) => sm.encode(part));
  frames.forEach((frame, i) => equalBytes(frame, v.frames[i], `chunk ${i}`));
  equalBytes(parts[0].transfer, v.transfer, "transfer id");
  const backwards = [...frames, ...frames].reverse().map(sm.decode);
  const assembly = new sm.Assembly(backwards[0], v.bytes);
  backwards.forEach((part) => assembly.add(part));
  equal([assembly.complete, assembly.missing], [true, []], "complete, missing");
  equal(assembly.blob(), blob, "assembled");
});

// --- 9.1 bundles ---

section("bundles", vectors.bundles, (v) => {
  const stored = sm.fromHex(v.bytes);
  const files = new Map(Object.entries(v.files).map(([name, hex]) => [name, sm.fromHex(hex)]));
  equalBytes(bundleBytes(ascii(v.spec), v.batch, files), v.bytes, "bytes");
  const bundle = openBundle(stored);
  equal([bundle.batch, bundle.spec.d], [v.batch, sm.readSpec(ascii(v.spec)).d], "batch, d");
  equal(bundle.files, files, "files");
  refuses(() => bundle.file("x.pte"), "bundle");
  for (const [name, content] of files) {
    const at = Buffer.from(stored).indexOf(content.length ? content : "none");
    if (at < 0) continue;
    const bad = stored.slice();
    bad[at] ^= 1;
    refuses(() => openBundle(bad), "bundle", `${name} has SHA-256`);
  }
  for (let n = 0; n < stored.length; n++) {
    refuses(() => openBundle(stored.subarray(0, n)), ["bundle", "spec"]);
    for (const change of [0x01, 0x80, 0xff]) {
      const bad = stored.slice();
      bad[n] ^= change;
      refuses(() => openBundle(bad), ["bundle", "spec"]);
    }
  }
});

// --- rejects ---

const { rejects } = vectors;
section("rejects: frames", rejects.frames, (v) => refuses(() => sm.decode(sm.fromHex(v.frame)), v.error));
section("rejects: masks", rejects.masks, (v) => {
  const theta = new sm.Theta(Uint16Array.from(v.level), v.max_level, v.clamp);
  const shared = new sm.Shared({ seed: SEED + BigInt(theta.d), round: 1, job: "job", device: "dev" });
  refuses(() => sm.codecById(v.codec).decode(sm.fromHex(v.payload), theta, shared), v.error);
});
section("rejects: relay", rejects.relay, (v) => {
  const base = new sm.Theta(Uint16Array.from(v.level), v.max_level, v.clamp);
  refuses(() => sm.relay.decode(sm.fromHex(v.payload), base, SEED + BigInt(v.level.length), "job"), v.error);
});
section("rejects: exact", rejects.exact, (v) => {
  refuses(() => sm.exact.decode(sm.fromHex(v.payload), Int32Array.from(v.before), v.reach), v.error);
});
section("rejects: delta", rejects.delta, (v) => {
  const base = new sm.Theta(Uint16Array.from(v.level), v.max_level, v.clamp);
  refuses(() => sm.delta.decode(sm.fromHex(v.payload), base), v.error);
});
section("rejects: counts", rejects.counts, (v) => refuses(() => sm.counts.decode(sm.fromHex(v.payload), v.d), v.error));
section("rejects: specs", rejects.specs, (v) => refuses(() => sm.readSpec(ascii(v.json)), v.error));
section("rejects: models", rejects.models, (v) => refuses(() => sm.readModel(sm.fromHex(v.bytes)), v.error));
section("rejects: chunks", rejects.chunks, (v) =>
  refuses(() => {
    const parts = v.frames.map((frame) => sm.decode(sm.fromHex(frame)));
    const assembly = new sm.Assembly(parts[0], v.limit);
    parts.slice(1).forEach((part) => assembly.add(part));
    assembly.blob();
  }, v.error));

section("rejects: bundles", rejects.bundles, (v) => refuses(() => openBundle(sm.fromHex(v.bytes)), v.error));

console.log(`all ${total} vectors agree`);
