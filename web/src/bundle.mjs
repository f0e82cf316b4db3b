// The bundle that `seedmask export` writes, every byte under a digest, twin of seedmask/bundle.py.  PROTOCOL 9.1.
//
// No zip library: members are stored, and the zip structures have no freedom, so that the reader walks the local
// headers and then compares the whole file with what the rules give. Nothing is executed or extracted.

import { concat, crc32, same, toHex } from "./bytes.mjs";
import { ProtocolError } from "./errors.mjs";
import { sha256 } from "./sha256.mjs";
import { readSpec } from "./spec.mjs";

/** Version of the bundle's format. */
export const FORMAT = 1;
/** Most bytes of a bundle. */
export const MAX_BYTES = 2 ** 28;
const MEMBER = /^[a-z0-9_-]+(\/[a-z0-9_-]+)*\.[a-z0-9]+$/;
const [LOCAL, CENTRAL, END] = [0x04034b50, 0x02014b50, 0x06054b50];
const ASCII = new TextEncoder();

const fail = (text) => { throw new ProtocolError("bundle", text); };

/** An opened bundle. */
export class Bundle {
  /**
   * @param spec as readSpec returns it
   * @param {number} batch examples that a training step of its graphs takes
   * @param {Map<string, Uint8Array>} files its other members, by name
   */
  constructor(spec, batch, files) {
    Object.assign(this, { spec, batch, files });
  }

  /** Return one member, Uint8Array. Throws `bundle`, with the names of all members, where there is none of `name`. */
  file(name) {
    return this.files.get(name) ?? fail(`the bundle has no ${name}; it has ${[...this.files.keys()].join(", ")}`);
  }
}

/** Open a bundle, Uint8Array. Throws `bundle` or `spec`, with the check that failed, and nothing else. */
export function openBundle(bytes) {
  if (bytes.length > MAX_BYTES) fail(`a bundle is at most ${MAX_BYTES} bytes, found ${bytes.length}`);
  const files = members(bytes);
  const manifest = readManifest(files.get("manifest.json") ?? fail(`no manifest.json; it has ${listOf(files.keys())}`));
  files.delete("manifest.json");
  const odd = [...files.keys()].filter((name) => !Object.hasOwn(manifest.files, name));
  odd.push(...Object.keys(manifest.files).filter((name) => !files.has(name)));
  if (odd.length) fail(`manifest and members disagree about ${odd.sort().join(", ")}`);
  for (const [name, content] of files) {
    const found = toHex(sha256(content));
    const entry = manifest.files[name];
    if (entry?.bytes !== content.length || entry.sha256 !== found) {
      fail(`${name} has SHA-256 ${found.slice(0, 16)}..., the manifest says ${`${entry?.sha256}`.slice(0, 16)}...`);
    }
  }
  const json = files.get("spec.json") ?? fail("no spec.json");
  files.delete("spec.json");
  const spec = readSpec(json);
  const model = toHex(spec.digest);
  if (model !== manifest.model) {
    fail(`spec.json is model ${model.slice(0, 16)}..., the manifest says ${`${manifest.model}`.slice(0, 16)}...`);
  }
  const { batch } = manifest;
  if (!(Number.isInteger(batch) && batch >= 1 && batch <= 65536)) fail(`batch is 1 .. 65536, found ${batch}`);
  const bad = [...files.keys()].find((name) => !MEMBER.test(name));
  if (bad !== undefined) fail(`a member's name is like onnx/step.onnx, found ${bad}`);
  if (!same(bundleBytes(json, batch, files), bytes)) {
    fail("not as seedmask writes it: names, order, dates, flags or bytes between the members");
  }
  return new Bundle(spec, batch, files);
}

/**
 * Return the bundle, Uint8Array, of a `spec` (the bytes of its canonical JSON), a `batch` and `files` (Map of name to
 * Uint8Array). The same parts make the same bytes.
 */
export function bundleBytes(spec, batch, files) {
  const sorted = [["spec.json", spec], ...files].sort(([a], [b]) => (a < b ? -1 : 1));
  const manifest = {
    batch,
    files: Object.fromEntries(
      sorted.map(([name, content]) => [name, { bytes: content.length, sha256: toHex(sha256(content)) }]),
    ),
    format: FORMAT,
    model: toHex(sha256(spec)),
  };
  return zip([["manifest.json", ASCII.encode(JSON.stringify(manifest, null, 1))], ...sorted]);
}

const listOf = (names) => [...names].sort().join(", ") || "nothing";

function readManifest(bytes) {
  let manifest;
  try {
    manifest = JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (error) {
    fail(`not a bundle, or a damaged one: manifest.json: ${error.message}`);
  }
  if (manifest?.format !== FORMAT) fail(`bundle format ${manifest?.format}; this program reads ${FORMAT}`);
  if (manifest.files === null || typeof manifest.files !== "object") fail("a manifest's files are an object");
  return manifest;
}

/** Read the members in the order of their local headers, a Map of name to bytes; the caller checks all other bytes. */
function members(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found = new Map();
  const damaged = (text) => fail(`not a bundle, or a damaged one: ${text}`);
  let at = 0;
  while (at + 30 <= bytes.length && view.getUint32(at, true) === LOCAL) {
    const start = at + 30 + view.getUint16(at + 26, true) + view.getUint16(at + 28, true);
    const end = start + view.getUint32(at + 18, true);
    if (end > bytes.length) damaged(`a member ends at byte ${end} of ${bytes.length}`);
    const name = String.fromCharCode(...bytes.subarray(at + 30, at + 30 + view.getUint16(at + 26, true)));
    if (view.getUint16(at + 8, true) !== 0) fail(`${name} is compressed; members are stored`);
    if (found.has(name)) fail("a member occurs twice");
    found.set(name, bytes.slice(start, end));
    at = end;
  }
  if (!found.size) damaged("it does not begin with a member");
  return found;
}

/** Return the zip file of [name, bytes] pairs as PROTOCOL 9.1 fixes it. */
function zip(entries) {
  const [body, directory] = [[], []];
  let at = 0;
  for (const [name, content] of entries) {
    const title = ASCII.encode(name);
    // Shared by both headers: version needed, flags, method, time, date, CRC, sizes, lengths of name and extra field.
    const facts = numbers([2, 20], [2, 0], [2, 0], [2, 0], [2, 33], [4, crc32(content)], [4, content.length],
      [4, content.length], [2, title.length], [2, 0]);
    directory.push(
      numbers([4, CENTRAL], [1, 20], [1, 3]), facts,
      numbers([2, 0], [2, 0], [2, 0], [4, 0o600 * 65536], [4, at]), title, // comment, disk, attributes, offset
    );
    body.push(numbers([4, LOCAL]), facts, title, content);
    at += 30 + title.length + content.length;
  }
  const central = concat(directory);
  const count = entries.length;
  const end = numbers([4, END], [2, 0], [2, 0], [2, count], [2, count], [4, central.length], [4, at], [2, 0]);
  return concat([...body, central, end]);
}

/** Return little-endian integers one after the other; each field is [bytes, value]. */
function numbers(...fields) {
  const out = new Uint8Array(fields.reduce((sum, [size]) => sum + size, 0));
  let at = 0;
  for (const [size, value] of fields) for (let i = 0; i < size; i++) out[at++] = Math.floor(value / 256 ** i) % 256;
  return out;
}
