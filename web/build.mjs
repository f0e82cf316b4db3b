// `npm run build`: the client as one minified ES module, dist/seedmask.mjs, for a page that has no bundler of its own.
//
// Prints its size, plain and as a web server would compress it, and ends with status 1 unless the built module has the
// public names of src/index.mjs, all of them and no others.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const [entry, outfile] = ["./src/index.mjs", "./dist/seedmask.mjs"].map((path) => new URL(path, import.meta.url));
const { version } = JSON.parse(readFileSync(new URL("./package.json", import.meta.url), "utf8"));

await build({
  entryPoints: [fileURLToPath(entry)],
  outfile: fileURLToPath(outfile),
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  platform: "neutral", // pages, workers and Node alike: nothing of any one of them
  banner: { js: `// seedmask ${version}, Apache-2.0` },
  logLevel: "warning",
});

const [ours, built] = await Promise.all([import(entry), import(outfile)]);
const names = new Set([ours, built].flatMap((module) => Object.keys(module)));
const odd = [...names].filter((name) => !(name in ours && name in built));
if (odd.length) {
  console.error(`dist/seedmask.mjs and src/index.mjs disagree about ${odd.join(", ")}`);
  process.exit(1);
}
const bytes = readFileSync(outfile);
console.log(`dist/seedmask.mjs: ${bytes.length} bytes, ${gzipSync(bytes, { level: 9 }).length} with gzip`);
