// The model spec: what a seed and a mask mean, twin of seedmask/spec.py.  PROTOCOL 4.
//
// Its canonical JSON holds integers and ASCII strings only, so that every language writes the same bytes; their SHA-256
// is the model's identity. Weights are +c or -c by the seed; c travels as the bit pattern of a binary32.

import { same } from "./bytes.mjs";
import { ProtocolError, fail } from "./errors.mjs";
import { MAX_ACTIVATION, MAX_DIMENSIONS, OPS, integers, product, rule, shapeAfter } from "./layers.mjs";
import { EXACT_ONE, MAX_D, MAX_EXACT } from "./mask.mjs";
import { isName } from "./names.mjs";
import { signBits } from "./seed.mjs";
import { sha256 } from "./sha256.mjs";

/** Return `value` as canonical JSON: sorted keys, no spaces. */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
}

/**
 * Read a spec from the bytes of its canonical JSON.
 * @param {Uint8Array} bytes
 * @returns its fields as PROTOCOL 4 names them, and `d` masked weights, `e` exact values, `digest` Uint8Array [32].
 * Throws `spec`, and nothing else, for any other bytes.
 */
export function readSpec(bytes) {
  let spec;
  try {
    if (bytes.length > 1 << 20) fail("spec", `a spec is at most ${1 << 20} bytes, found ${bytes.length}`);
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    const keys = ["version", "name", "seed", "input", "range", "classes", "layers", "tensors"];
    spec = stated(JSON.parse(text), keys, { loss: "cross-entropy" });
    spec.layers = spec.layers.map((layer) => {
      const [must, may = {}] = OPS[layer.op];
      return stated(layer, ["op", ...must], must.includes("sources") ? may : { ...may, source: null });
    });
    spec.tensors = spec.tensors.map((tensor) =>
      tensor.kind === "exact"
        ? stated(tensor, ["name", "shape", "kind"], { start: 0 })
        : stated(tensor, ["name", "shape", "scale"], { kind: "masked" }));
    if (canonical(spec) !== text) fail("spec", "the JSON is not in canonical form");
    checkSpec(spec);
  } catch (error) {
    if (error instanceof ProtocolError) throw error;
    fail("spec", `not a model spec: ${error.message}`);
  }
  return { ...spec, d: entries(spec, "masked"), e: entries(spec, "exact"), digest: sha256(bytes) };
}

const kindOf = (tensor) => tensor.kind ?? "masked";

/** Return the sizes of the tensors of `kind`, in order. */
export const sizesOf = (spec, kind) => spec.tensors.filter((t) => kindOf(t) === kind).map((t) => product(t.shape));

/** Count the entries of all tensors of `kind`: "masked", "frozen" or "exact". */
export const entries = (spec, kind) => sizesOf(spec, kind).reduce((a, b) => a + b, 0);

/** Make the weights of `kind`, "masked" or "frozen", from the seed of a read spec: Float32Array [entries], +c or -c. */
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

/** Return the exact values that a job of a read spec begins with, Int32Array [e] in units of 2**-12. */
export function begin(spec) {
  const starts = spec.tensors.filter((t) => kindOf(t) === "exact");
  return Int32Array.from(starts.flatMap((t) => new Array(product(t.shape)).fill((t.start ?? 0) * EXACT_ONE)));
}

/** Pick the fields `keys` of `value`, and those of `defaults` that are given and are not the default. */
function stated(value, keys, defaults = {}) {
  const other = Object.keys(defaults).filter(
    (key) => key in value && canonical(value[key]) !== canonical(defaults[key]),
  );
  return Object.fromEntries([...keys, ...other].map((key) => [key, value[key]]));
}

/** Throw `spec` unless the parts of a parsed spec fit together. */
function checkSpec(spec) {
  rule(spec.version === 1, `spec version ${spec.version}; this program reads 1`);
  rule(isName(spec.name), "a model's name is [a-z0-9-], at most 63 long");
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
    values.push(shapeAfter(layer, takes.map((value) => values[value]), shapes, number));
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
