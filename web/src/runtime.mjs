// Training on ONNX Runtime in JavaScript: the bundle's step graph, run by whichever `ort` the page hands in.
//
// The contract is that of edge_client/runtimes/contract.py, and tests/test_browser.py holds this file to it in a real
// browser. `ort` is the module object of onnxruntime-web (its wasm build is what is tested); this file loads nothing
// itself, touches no DOM, and so runs in a worker as well, which is where a page wants it: a step blocks its thread.
// FedPM: Isik et al., arXiv 2209.15328.
//
// Wrong arguments are a RangeError, training that left the numbers a DivergedError, a bundle without graphs `bundle`.

import { entries, weights } from "./spec.mjs";

const BETA1 = 0.9;
const BETA2 = 0.999;
const EPSILON = 1e-8;
const GRAPHS = { adam: "onnx/step.onnx", sgd: "onnx/step_sgd.onnx" };
const NOTHING = new Float32Array(0);

/** Thrown by a step that leaves scores or loss NaN or infinite. The round is lost; the state it began from is not. */
export class DivergedError extends Error {
  constructor(text) {
    super(text);
    this.name = "DivergedError";
  }
}

/**
 * Fill in the defaults of what a step does with its gradient. Throws RangeError for an unknown field.
 * @param given `rate` > 0 of `optimizer` "adam" or "sgd" (then `momentum`, 0 .. 1); `timesTheta`, the estimator of
 *   FedPM's code; weights `kl` and `sparsity` of the regularisers; `mean`: run w * theta, draw no mask;
 *   `exactRate` > 0, that of exact values, by the same optimiser
 */
export function ruleOf(given) {
  const standard = {
    ...{ optimizer: "adam", momentum: 0, timesTheta: false, kl: 0, sparsity: 0, mean: false },
    exactRate: 1e-3,
  };
  const odd = Object.keys(given).filter((key) => key !== "rate" && !(key in standard));
  if (odd.length) throw new RangeError(`a rule has rate, ${Object.keys(standard).join(", ")}; found ${odd.join(", ")}`);
  return { ...standard, ...given };
}

/** List the vectors of a state that `rule` uses; any other may be empty. */
export function needs(rule) {
  const out = ["scores"];
  if (rule.optimizer === "adam" || rule.momentum) out.push("m");
  if (rule.optimizer === "adam") out.push("v");
  if (rule.kl) out.push("anchor");
  return out;
}

/**
 * Return a new optimiser state that begins at `scores` and is anchored there.
 * @param {Float32Array} scores [d], logits
 * @param rule as `ruleOf` returns it
 * @param kept the state that the round before ended with: its moments go on if it has what `rule` needs; or null
 * @param {Float32Array} values exact values [e]
 * @returns {scores, m, v, t, anchor, exact}, where exact is {values, m, v}; every vector Float32Array [d], or [e] in
 *   exact, or empty where the rule has no use for it; t counts steps
 */
export function startState(scores, rule, kept = null, values = NOTHING) {
  const used = needs(rule);
  const anchor = used.includes("anchor") ? scores : NOTHING;
  const goesOn = kept && used.every((name) => name === "anchor" || kept[name].length === scores.length);
  if (goesOn && kept.exact.values.length === values.length) {
    return { scores, m: kept.m, v: kept.v, t: kept.t, anchor, exact: { ...kept.exact, values } };
  }
  const zeros = (name) => (used.includes(name) ? new Float32Array(scores.length) : NOTHING);
  const exact = { values, m: new Float32Array(values.length), v: new Float32Array(values.length) };
  return { scores, m: zeros("m"), v: zeros("v"), t: 0, anchor, exact };
}

/** Return exact values and moments after step `t`, from 1, along `gradient` [e]; in doubles, few as they are. */
function stepped({ values, m, v }, gradient, rule, t) {
  const adam = rule.optimizer === "adam";
  const { rate, epsilon } = adam ? corrected(rule.exactRate, t) : { rate: rule.exactRate };
  const out = { values: values.slice(), m: m.slice(), v: v.slice() };
  gradient.forEach((g, i) => {
    const first = adam ? BETA1 * m[i] + (1 - BETA1) * g : rule.momentum * m[i] + g;
    const second = adam ? BETA2 * v[i] + (1 - BETA2) * g * g : v[i];
    out.values[i] = values[i] - (adam ? (rate * first) / (Math.sqrt(second) + epsilon) : rate * first);
    [out.m[i], out.v[i]] = [first, second];
  });
  return out;
}

/**
 * Make a bundle ready to train on `ort`, the module object of onnxruntime-web.
 * @param bundle as `openBundle` returns it
 * @returns {Promise<Runtime>} rejects with `bundle` where it lacks a graph, or with what `ort` says of one
 */
export async function openRuntime(ort, bundle) {
  const runtime = new Runtime(ort, bundle);
  // Now, since a bundle that cannot train should say so at the start. One after the other: they share one engine.
  await runtime._session(GRAPHS.adam);
  await runtime._session("onnx/eval.onnx");
  return runtime;
}

/** One model on sessions of its graphs; w is regenerated from the seed and kept, 4 bytes a weight. */
class Runtime {
  constructor(ort, bundle) {
    this.ort = ort;
    this.bundle = bundle;
    this.spec = bundle.spec;
    this.w = new ort.Tensor("float32", weights(bundle.spec), [bundle.spec.d]);
    const frozen = entries(bundle.spec, "frozen");
    this.frozen = frozen ? { frozen: new ort.Tensor("float32", weights(bundle.spec, "frozen"), [frozen]) } : {};
    this.sessions = new Map();
  }

  /** Return the feeds beside masked weights that a spec with frozen or exact tensors asks for. */
  _unmasked(exact) {
    const { e } = this.spec;
    return e ? { ...this.frozen, exact: new this.ort.Tensor("float32", Float32Array.from(exact), [e]) } : this.frozen;
  }

  async _session(name) {
    if (!this.sessions.has(name)) {
      const options = { executionProviders: ["wasm"], enableMemPattern: false, logSeverityLevel: 3 };
      this.sessions.set(name, await this.ort.InferenceSession.create(this.bundle.file(name), options));
    }
    return this.sessions.get(name);
  }

  /**
   * Take one step on the scores; arguments stay as they were.
   * @param {Float32Array} x [n * input], normalised, 1 <= n <= batch
   * @param y class numbers, an array [n], or Float32Array [n * classes] where the loss is "mse"
   * @param state as `startState` or a step returns it
   * @param {Float32Array} noise [d], uniform in 0 .. 1: the mask is noise < sigmoid(scores); unused if rule.mean, where
   *   it is sigmoid(scores) itself
   * @param rule as `ruleOf` takes it
   * @returns {Promise<{state, loss, correct}>} the state after the step; the mean loss and the number of correct
   *   predictions before it (0 for "mse"). Rejects with RangeError for wrong arguments, and with DivergedError
   */
  async step(x, y, state, noise, rule) {
    rule = ruleOf(rule);
    const { Tensor } = this.ort;
    const { spec, bundle: { batch } } = this;
    const n = checkStep(spec, batch, x, y, state, noise, rule);
    const used = needs(rule);
    const t = state.t + 1;
    const number = (value) => new Tensor("float32", Float32Array.of(value), []);
    // One zero in place of a vector that the rule multiplies by zero.
    const vector = (name) => {
      const values = used.includes(name) ? state[name] : new Float32Array(1);
      return new Tensor("float32", values, [values.length]);
    };
    const yes = (value) => new Tensor("bool", Uint8Array.of(value ? 1 : 0), []);
    const feeds = {
      x: new Tensor("float32", padded(x, Float32Array, batch * size(spec)), [batch, ...spec.input]),
      y: spec.loss === "mse"
        ? new Tensor("float32", padded(y, Float32Array, batch * spec.classes), [batch, spec.classes])
        : new Tensor("int64", padded(Array.from(y, BigInt), BigInt64Array, batch), [batch]),
      weight: new Tensor("float32", padded(new Float32Array(n).fill(1 / n), Float32Array, batch), [batch]),
      scores: vector("scores"),
      m: vector("m"),
      anchor: vector("anchor"),
      w: this.w,
      u: new Tensor("float32", noise, [spec.d]),
      mean: yes(rule.mean),
      plain: yes(!(rule.timesTheta || rule.kl || rule.sparsity)),
      terms: new Tensor("float32", Float32Array.of(rule.timesTheta ? 1 : 0, ...pulls(rule, spec.d)), [4]),
      ...this._unmasked(state.exact.values),
    };
    if (rule.optimizer === "adam") {
      const { rate, epsilon } = corrected(rule.rate, t);
      Object.assign(feeds, { v: vector("v"), rate: number(rate), epsilon: number(epsilon) });
    } else {
      Object.assign(feeds, { rate: number(rule.rate), momentum: number(rule.momentum) });
    }
    const moments = ["m", "v"].filter((name) => used.includes(name));
    const wanted = ["scores_out", "loss", "correct", ...moments.map((name) => `${name}_out`)];
    if (spec.e) wanted.push("exact_grad");
    const session = await this._session(GRAPHS[rule.optimizer]);
    const out = await session.run(feeds, wanted);
    const after = { ...state, scores: out.scores_out.data, t };
    for (const name of moments) after[name] = out[`${name}_out`].data;
    if (spec.e) after.exact = stepped(state.exact, out.exact_grad.data, rule, t);
    return finite({ state: after, loss: Number(out.loss.data[0]), correct: Number(out.correct.data[0]) });
  }

  /**
   * Predict under weights w * mask.
   * @param {Float32Array} x [n * input], normalised, any n
   * @param mask [d] of 0 .. 1: a mask, or probabilities
   * @param exact exact values [e]
   * @returns {Promise<Float32Array>} [n * classes], the values of the last layer; rejects with RangeError
   */
  async logits(x, mask, exact = NOTHING) {
    const { spec, bundle: { batch } } = this;
    const [each, n] = [size(spec), x.length / size(spec)];
    if (!Number.isInteger(n)) throw new RangeError(`x is [n * ${each}], found [${x.length}]`);
    checkVector("mask", mask, spec.d);
    checkVector("exact", exact, spec.e);
    const session = await this._session("onnx/eval.onnx");
    const shared = new this.ort.Tensor("float32", Float32Array.from(mask), [spec.d]);
    const feeds = { w: this.w, mask: shared, ...this._unmasked(exact) };
    const out = new Float32Array(n * spec.classes);
    // A batch at a time, so that memory does not grow with the test set.
    for (let at = 0; at < n; at += batch) {
      const part = Float32Array.from(x.subarray(at * each, (at + batch) * each));
      const tensor = new this.ort.Tensor("float32", part, [part.length / each, ...spec.input]);
      const { logits } = await session.run({ x: tensor, ...feeds }, ["logits"]);
      out.set(logits.data, at * spec.classes);
    }
    return out;
  }

  /** Release the engine's memory; use the runtime no more. */
  async release() {
    for (const session of this.sessions.values()) await session.release();
    this.sessions.clear();
  }
}

/** Return how many numbers one example of a spec has. */
export const size = (spec) => spec.input.reduce((a, b) => a * b, 1);

/** Return Adam's rate and epsilon at step `t`, from 1, both bias corrections inside; graphs have no doubles for it. */
function corrected(rate, t) {
  const root = Math.sqrt(1 - BETA2 ** t);
  return { rate: (rate * root) / (1 - BETA1 ** t), epsilon: EPSILON * root };
}

/** Return [a, b, c]: the regularisers' gradient by the scores is theta (1 - theta) (a s + b anchor + c). */
const pulls = (rule, d) => [rule.kl / d, -rule.kl / d, rule.sparsity / d];

/** Return `values` as a `Kind` of `length`, zeros behind them. */
function padded(values, Kind, length) {
  if (values instanceof Kind && values.length === length) return values;
  const out = new Kind(length);
  out.set(values);
  return out;
}

/** Return the number of examples. Throws RangeError unless a step takes these arguments. */
function checkStep(spec, batch, x, y, state, noise, rule) {
  const mse = spec.loss === "mse";
  const n = mse ? y.length / spec.classes : y.length;
  if (mse && !(y instanceof Float32Array && Number.isInteger(n))) {
    throw new RangeError(`y is Float32Array [n * ${spec.classes}], found ${y.constructor.name} [${y.length}]`);
  }
  if (!(n >= 1 && n <= batch)) throw new RangeError(`a step takes 1 .. ${batch} examples, found ${n}`);
  checkVector("x", x, n * size(spec));
  if (!mse) {
    for (const k of y) {
      if (!(Number.isInteger(k) && k >= 0 && k < spec.classes)) {
        throw new RangeError(`y is ${n} classes in 0 .. ${spec.classes - 1}, found ${k}`);
      }
    }
  }
  if (!Object.hasOwn(GRAPHS, rule.optimizer)) {
    throw new RangeError(`optimizer is one of ${Object.keys(GRAPHS).join(", ")}, found ${rule.optimizer}`);
  }
  for (const name of needs(rule)) checkVector(name, state[name], spec.d);
  checkVector("noise", noise, spec.d);
  for (const name of ["values", "m", "v"]) checkVector(`exact ${name}`, state.exact?.[name], spec.e);
  for (const name of ["rate", "exactRate"]) {
    if (!(rule[name] > 0)) throw new RangeError(`${name} is above 0, found ${rule[name]}`);
  }
  if (!(rule.momentum >= 0 && rule.momentum < 1)) throw new RangeError(`momentum is 0 .. 1, found ${rule.momentum}`);
  return n;
}

/** Throw RangeError unless `values` is a typed array [length]. */
function checkVector(name, values, length) {
  if (!(ArrayBuffer.isView(values) && values.length === length)) {
    throw new RangeError(`${name} is [${length}], found [${values?.length}]`);
  }
}

/** Return `result`. Throws DivergedError unless its loss, scores and exact values are finite. */
function finite(result) {
  const { state, loss } = result;
  let sum = 0; // finite only if every score is
  for (let i = 0; i < state.scores.length; i++) sum += state.scores[i];
  for (const value of state.exact.values) sum += value;
  if (!(Number.isFinite(loss) && Number.isFinite(sum))) {
    throw new DivergedError(
      `step ${state.t}: loss ${loss}, scores or loss not finite; are the inputs numbers, and is the rate sane?`,
    );
  }
  return result;
}
