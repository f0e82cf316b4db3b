// Seedmask in JavaScript: the second implementation of seedmask/PROTOCOL.md, and a client up to the network.
//
// Everything public, from one place. No dependencies and no IO, so the same modules run in a page, in a worker and in
// Node; the page brings `ort` (onnxruntime-web), the bytes of a bundle, storage and the MQTT connection. Written to be
// ported: typed arrays, 32-bit arithmetic, nowhere a number above 2**53. Modules have the names of the Python library's
// files, and `tests/vectors/verify.mjs` holds both to the same bytes. Throws as errors.mjs says.

export { ProtocolError } from "./errors.mjs";
export { concat, crc32, fromHex, same, toHex } from "./bytes.mjs";
export { sha256 } from "./sha256.mjs";
export {
  UNIFORMS, WEIGHTS, fold, keyOf, signBits, threefry2x32, uniforms16, uniformsKey, weightsKey, words,
} from "./seed.mjs";
export { Shared } from "./shared.mjs";
export { CLAMP, EXACT_LIMIT, EXACT_ONE, MAX_D, MAX_EXACT, Theta, table } from "./mask.mjs";
export { begin, canonical, entries, readSpec, weights } from "./spec.mjs";
export { CODECS, codecById } from "./codec/index.mjs";
export * as counts from "./codec/counts.mjs";
export * as delta from "./codec/delta.mjs";
export * as exact from "./codec/exact.mjs";
export * as hmrc from "./codec/hmrc.mjs";
export * as packed from "./codec/packed.mjs";
export * as rans from "./codec/rans.mjs";
export * as relay from "./codec/relay.mjs";
export * as tensors from "./codec/tensors.mjs";
export { MAX_FRAME, PROTOCOL_VERSION, Phase, Status, basis, decode, encode } from "./wire.mjs";
export { Assembly, CHUNK_BYTES, split, transferId } from "./chunks.mjs";
export { readModel, writeModel } from "./model.mjs";
export { Bundle, FORMAT, MAX_BYTES, bundleBytes, openBundle } from "./bundle.mjs";
export { DivergedError, needs, openRuntime, ruleOf, size, startState } from "./runtime.mjs";
export { normalise, ruleOfWork, systemChance, train, trainRound, updateOf } from "./training.mjs";
