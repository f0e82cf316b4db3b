// A bundle in JavaScript: open what `seedmask export` writes, every byte under a digest.  PROTOCOL 9.1.
//
// No zip library: members are stored, and the zip structures have no freedom, so that the reader walks the local
// headers and then holds the whole file against what the rules give. Nothing is executed or extracted. SHA-256 is
// seedmask.mjs's and not WebCrypto's, which is absent on a plain http page, where a phone in a workshop may well be.

import { ProtocolError, concat, crc32, readSpec, same, sha256, toHex } from "./seedmask.mjs";

export const FORMAT = 1;
export const MAX_BYTES = 2 ** 28;
const MEMBER = /^[a-z0-9_-]+(\/[a-z0-9_-]+)*\.[a-z0-9]+$/;
const [LOCAL, CENTRAL, END] = [0x04034b50, 0x02014b50, 0x06054b50];
const ASCII = new TextEncoder();

const fail = (text) => { throw new ProtocolError("bundle", text); };

/** `spec` as readSpec gives it; `batch`, the examples per training step its graphs take; `files`, name to bytes. */
export class Bundle {
  constructor(spec, batch, files) {
    Object.assign(this, { spec, batch, files });
  }

  /** One member, Uint8Array. Throws `bundle` and lists what there is. */
  file(name) {
    return this.files.get(name) ?? fail(`the bundle has no ${name}; it has ${[...this.files.keys()].join(", ")}`);
  }
}

/** Open a bundle, Uint8Array. Throws `bundle` or `spec` and says which check failed, and nothing else. */
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

/** The one file that a spec (bytes of its canonical form), a batch and `files` (Map of name to bytes) make. */
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

/** Members in the order of their local headers, name to bytes; that the rest of the file fits, the caller checks. */
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

/** The zip file of [name, bytes] pairs as PROTOCOL 9.1 fixes it. */
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

/** Little-endian integers, each [bytes, value]. */
function numbers(...fields) {
  const out = new Uint8Array(fields.reduce((sum, [size]) => sum + size, 0));
  let at = 0;
  for (const [size, value] of fields) for (let i = 0; i < size; i++) out[at++] = Math.floor(value / 256 ** i) % 256;
  return out;
}
