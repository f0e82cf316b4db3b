// One round of local training in JavaScript: from the announced probabilities to the update frame that is sent.
//
// The twin of edge_client/training.py. What it leaves to others is the conversation: fetching theta, storing the frame
// before it is sent, and sending it until a receipt comes (PROTOCOL 8).

import { same, toHex } from "./bytes.mjs";
import * as exact from "./codec/exact.mjs";
import { codecById } from "./codec/index.mjs";
import { ProtocolError } from "./errors.mjs";
import { EXACT_ONE, table } from "./mask.mjs";
import { ruleOf, size, startState } from "./runtime.mjs";
import { Shared } from "./shared.mjs";
import { basis, encode } from "./wire.mjs";

/**
 * Fill `out`, a Float32Array, with private uniforms in 0 .. 1, 24 bits each, straight from the system's generator: a
 * mask must not be guessable by whoever knows this page.
 */
export function systemChance(out) {
  const words = new Uint32Array(Math.min(out.length, 16384)); // 65536 bytes are all that one call gives
  for (let at = 0; at < out.length; at += words.length) {
    const part = crypto.getRandomValues(words.subarray(0, out.length - at));
    for (let i = 0; i < part.length; i++) out[at + i] = (part[i] >>> 8) * 2 ** -24;
  }
}

/** Return the rule of every step that a job's `work` asks for in `round`, from 1. `mean` is left to `train`. */
export function ruleOfWork(work, round) {
  const decayed = (rate) => Math.max((rate / 1e6) * (1 - work.rate_decay / 1e6) ** (round - 1), 1e-12);
  return ruleOf({
    rate: decayed(work.learning_rate),
    exactRate: decayed(work.exact_rate),
    optimizer: ["adam", "sgd"][work.optimizer],
    momentum: work.momentum / 1e6,
    timesTheta: work.straight_through === 1,
    kl: work.kl / 1e6,
    sparsity: work.sparsity / 1e6,
  });
}

/** Map raw inputs, bytes or floats, from the range of `spec` to -1 .. 1, as the network takes them: Float32Array. */
export function normalise(spec, raw) {
  const [low, high] = spec.range;
  const [floor, factor] = [Math.fround(low), Math.fround(2 / (high - low))];
  const out = new Float32Array(raw.length);
  for (let i = 0; i < out.length; i++) out[i] = Math.fround(Math.fround(Math.fround(raw[i]) - floor) * factor) - 1;
  return out;
}

/**
 * Train `work.epochs` passes over `data`.
 * @param runtime as `openRuntime` returns it
 * @param data {x, y}: x a typed array [n * input] as stored; y class numbers [n], for "mse" Float32Array [n * classes]
 * @param theta the Theta to begin from
 * @param work what the announcement asks for
 * @param options `round`, from 1; `kept`, the state of the round before where the optimiser goes on; `chance(out)`
 *   fills a Float32Array with private uniforms; `progress(step, steps)` is called before each step, false stops
 * @returns {Promise<{scores, exact, loss, correct, state}>} the logits [d] and exact values [e] that were learnt, the
 *   last epoch's mean loss and correct predictions, the optimiser's state; or null if it was stopped
 */
export async function train(runtime, data, theta, work, options = {}) {
  const { round = 1, kept = null, chance = systemChance, progress = () => true } = options;
  const { spec, bundle: { batch } } = runtime;
  const [each, wide] = [size(spec), spec.loss === "mse" ? spec.classes : 1];
  const n = data.y.length / wide;
  if (!(n >= 1 && data.x.length === n * each)) {
    throw new RangeError(`data: ${data.x.length / each} inputs of ${each} values and ${n} targets`);
  }
  if (theta.d !== spec.d) throw new RangeError(`theta has ${theta.d} weights, model ${spec.name} has ${spec.d}`);
  if (theta.exact.length !== spec.e) throw new RangeError(`theta has ${theta.exact.length} exact values of ${spec.e}`);
  const rule = ruleOfWork(work, round);
  const logit = Float32Array.from(table(theta.maxLevel, theta.clamp), (q) => Math.log(q / (65536 - q)));
  const values = Float32Array.from(theta.exact, (value) => value / EXACT_ONE);
  let state = startState(Float32Array.from(theta.level, (level) => logit[level]), rule, kept, values);
  const noise = new Float32Array(spec.d);
  const perEpoch = Math.ceil(n / batch);
  let [losses, correct] = [0, 0];
  for (let epoch = 0; epoch < work.epochs; epoch++) {
    const mean = epoch < work.mean_epochs;
    const order = permutation(n, chance);
    [losses, correct] = [0, 0];
    for (let number = 0; number < perEpoch; number++) {
      if (!progress(epoch * perEpoch + number, work.epochs * perEpoch)) return null;
      const pick = order.subarray(number * batch, (number + 1) * batch);
      if (!mean) chance(noise);
      const x = normalise(spec, rows(data.x, pick, each));
      const result = await runtime.step(x, rows(data.y, pick, wide), state, noise, { ...rule, mean });
      state = result.state;
      losses += result.loss * pick.length;
      correct += result.correct;
    }
  }
  return { scores: state.scores, exact: state.exact.values, loss: losses / n, correct, state };
}

/**
 * Return the update message that reports an `outcome` of `train` on `samples` examples: `work.masks` masks, drawn and
 * coded as the job asks. `bitsPerIndex` is the device's wish for kappa, bits of relative entropy per block of `hmrc`.
 */
export function updateOf(announce, device, spec, theta, outcome, samples, { chance = systemChance, bitsPerIndex } = {}) {
  const { work } = announce;
  const codec = codecById(work.codec);
  const [least, most] = [work.kappa / 1000, work.kappa_max / 1000];
  const plan = {
    kappa: bitsPerIndex === undefined ? least : Math.min(Math.max(bitsPerIndex, least), most),
    maxBlocks: work.max_blocks,
  };
  const ready = new Float32Array(1024);
  let left = 0;
  const random = () => {
    if (!left) chance(ready);
    left = (left || ready.length) - 1;
    return ready[left];
  };
  const payloads = Array.from({ length: work.masks }, (_, index) => {
    const shared = new Shared({ seed: spec.seed, round: announce.round, job: announce.job, device, index });
    return codec.draw(outcome.scores, theta, shared, random, plan);
  });
  return {
    type: "update",
    round: announce.round,
    basis: basis(announce.job, announce.model, announce.theta),
    samples,
    loss: Math.min(Math.floor(outcome.loss * 1e6 + 0.5), 2 ** 32 - 1),
    correct: outcome.correct,
    codec: work.codec,
    payloads,
    ...(spec.e ? { exact: exact.encode(exact.quantised(outcome.exact, theta.exact), theta.exact) } : {}),
  };
}

/** Throw a ProtocolError unless `device` can train this round: better now than when it has trained. */
function checkRound(announce, spec, theta, device) {
  const { job, model, round, selected, theta: wanted, work } = announce;
  const fail = (code, text) => { throw new ProtocolError(code, text); };
  const name = (digest) => toHex(digest).slice(0, 12);
  if (!same(model, spec.digest)) {
    fail("field", `job ${job} trains model ${name(model)}, our bundle is model ${name(spec.digest)}`);
  }
  const found = theta.digest();
  if (!same(wanted, found)) fail("theta-mismatch", `round ${round} begins from ${name(wanted)}, found ${name(found)}`);
  if (selected.length && !selected.includes(device)) fail("field", `round ${round} does not ask ${device}`);
  codecById(work.codec);
}

/**
 * Carry out a round of `device`: train on `data` from `theta` as `announce`, a decoded message, asks, and draw masks.
 * @param options those of `train` and `updateOf`; `kept`, the outcome.state of the round before, is used if the job
 *   keeps optimisers
 * @returns {Promise<{outcome, update, frame}>} store `frame`, Uint8Array, then send it; or null if it was stopped.
 * Rejects with a ProtocolError for a round that is not for this device, its model or this theta.
 */
export async function trainRound(runtime, data, announce, theta, device, options = {}) {
  const { work, round } = announce;
  checkRound(announce, runtime.spec, theta, device);
  const kept = work.keep_optimizer ? options.kept : null;
  const outcome = await train(runtime, data, theta, work, { ...options, round, kept });
  if (outcome === null) return null;
  const samples = data.y.length / (runtime.spec.loss === "mse" ? runtime.spec.classes : 1);
  const update = updateOf(announce, device, runtime.spec, theta, outcome, samples, options);
  return { outcome, update, frame: encode(update) };
}

/** Return 0 .. n - 1 in random order (Fisher and Yates), Uint32Array [n]. */
function permutation(n, chance) {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  const uniforms = new Float32Array(n);
  chance(uniforms);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(uniforms[i] * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** Return the rows `pick` of `values`, each `width` long, one after the other in the same kind of array. */
function rows(values, pick, width) {
  const out = new values.constructor(pick.length * width);
  pick.forEach((row, i) => {
    for (let k = 0; k < width; k++) out[i * width + k] = values[row * width + k];
  });
  return out;
}
