// The page's half of tests/chromium.py: a worker that takes one job after the other from the test and answers it.
//
// A message is a u32 length, JSON of that length, and the arrays that it lists, one behind the other.

import * as ort from "/ort/ort.wasm.min.mjs";
import {
  Shared, Theta, codecById, decode, fold, keyOf, openBundle, openRuntime, ruleOf, startState, systemChance, trainRound,
  words,
} from "/web/index.mjs";

ort.env.wasm.wasmPaths = new URL("/ort/", self.location).href;
ort.env.wasm.numThreads = 1; // more want cross-origin isolation

const KINDS = { float32: Float32Array, uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array };
const runtimes = new Map();
let timed = null; // the state between two calls of `time`
let ended = null; // the state after the last round

function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const arrays = {};
  for (const { name, kind, count } of head.arrays) {
    const bytes = count * KINDS[kind].BYTES_PER_ELEMENT;
    arrays[name] = new KINDS[kind](buffer.slice(at, (at += bytes)));
  }
  return { ...head, ...arrays };
}

function pack(head, arrays) {
  const listed = Object.entries(arrays).map(([name, values]) => {
    const [kind] = Object.entries(KINDS).find(([, Kind]) => values instanceof Kind);
    return { name, kind, count: values.length };
  });
  const json = new TextEncoder().encode(JSON.stringify({ ...head, arrays: listed }));
  return new Blob([Uint32Array.of(json.length), json, ...Object.values(arrays)]);
}

/** Uniforms that the test can make as well: the upper 24 bits of the words of fold(key of seed, call). */
function sharedChance(seed) {
  let call = 0;
  return (out) => {
    words(fold(keyOf(seed), call++), out.length).forEach((word, i) => { out[i] = (word >>> 8) * 2 ** -24; });
  };
}

const stateOf = ({ scores, m, v, t, anchor, ...job }) =>
  ({ scores, m, v, t, anchor, exact: { values: job.exact_values, m: job.exact_m, v: job.exact_v } });

const JOBS = {
  async open({ name, bundle }) {
    await runtimes.get(name)?.release();
    runtimes.set(name, await openRuntime(ort, openBundle(bundle)));
    return [{}, {}];
  },

  async step(job) {
    const { name, x, y, noise, rule } = job;
    const { state, loss, correct } = await runtimes.get(name).step(x, y, stateOf(job), noise, rule);
    const { scores, m, v, t, anchor, exact } = state;
    const more = { exact_values: exact.values, exact_m: exact.m, exact_v: exact.v };
    return [{ loss, correct, t }, { scores, m, v, anchor, ...more }];
  },

  /** `count` steps, one batch of x and y behind the other, all with one noise, from where the last call ended. */
  async time({ name, x, y, noise, rule, count, fresh }) {
    const runtime = runtimes.get(name);
    if (fresh) timed = startState(new Float32Array(noise.length), ruleOf(rule));
    const [ms, losses] = [[], []];
    for (let i = 0; i < count; i++) {
      const part = (values) => values.subarray((i * values.length) / count, ((i + 1) * values.length) / count);
      const [px, py] = [part(x), part(y)];
      const start = performance.now();
      const result = await runtime.step(px, py, timed, noise, rule);
      ms.push(performance.now() - start);
      losses.push(result.loss);
      timed = result.state;
    }
    return [{ ms, losses }, {}];
  },

  async logits({ name, x, mask, exact }) {
    return [{}, { logits: await runtimes.get(name).logits(x, mask, exact) }];
  },

  /** A round as a device has it; `seed` in place of the system's randomness where the test wants to follow. */
  async round({ name, device, frame, level, max_level, clamp, values, x, y, seed, stop, again }) {
    const runtime = runtimes.get(name);
    const announce = decode(frame);
    const theta = new Theta(level, max_level, clamp, values);
    const chance = seed === undefined ? systemChance : sharedChance(seed);
    let seen = 0;
    const progress = (step) => ((seen = step + 1), step !== stop);
    const kept = again ? ended : null;
    const done = await trainRound(runtime, { x, y }, announce, theta, device, { chance, progress, kept });
    if (done === null) return [{ stopped: seen }, {}];
    const { outcome, update, frame: sent } = done;
    ended = outcome.state;
    const who = { seed: runtime.spec.seed, round: announce.round, job: announce.job, device };
    const masks = update.payloads.map((payload, index) =>
      codecById(update.codec).decode(payload, theta, new Shared({ ...who, index }), announce.work.max_blocks));
    const { loss, correct } = outcome;
    return [
      { loss, correct, steps: seen },
      { frame: sent, scores: outcome.scores, ...Object.fromEntries(masks.map((mask, i) => [`mask${i}`, mask])) },
    ];
  },

  /** What the system's generator gives. */
  async chance({ count }) {
    const out = new Float32Array(count);
    const start = performance.now();
    systemChance(out);
    return [{ ms: performance.now() - start }, { out }];
  },
};

for (;;) {
  const next = await fetch("/next");
  if (next.status !== 200) continue;
  const job = unpack(await next.arrayBuffer());
  let answer;
  try {
    answer = pack(...(await JOBS[job.op](job)));
  } catch (error) {
    answer = pack({ error: error.name ?? "Error", text: error.message ?? String(error) }, {});
  }
  await fetch("/result", { method: "POST", body: answer });
}
