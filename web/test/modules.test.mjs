// Promises about the modules themselves; that their bytes are right is what tests/vectors/verify.mjs checks.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

const SRC = new URL("../src/", import.meta.url);

/** Path under src/ to its text, of every module. */
const texts = new Map(
  readdirSync(SRC, { recursive: true }).map(String).filter((path) => path.endsWith(".mjs")).sort()
    .map((path) => [path.replaceAll("\\", "/"), readFileSync(new URL(path, SRC), "utf8")]),
);

/** The specifiers that a module imports from or re-exports. */
const specifiers = (text) =>
  [...text.matchAll(/^(?:import|export)\b[^;]*?\bfrom "([^"]+)";$/gm)].map((found) => found[1]);

/** Path of a module to the paths of those that it imports. */
const graphOf = (modules) => new Map([...modules].map(([path, text]) => [
  path,
  specifiers(text).map((to) => new URL(to, new URL(path, "file:///")).pathname.slice(1)),
]));

/** The first circle in a graph, a list of paths that ends where it began; null if there is none. */
function circleIn(graph) {
  const done = new Set();
  const visit = (path, above) => {
    if (above.includes(path)) return [...above.slice(above.indexOf(path)), path];
    if (done.has(path)) return null;
    for (const next of graph.get(path) ?? []) {
      const found = visit(next, [...above, path]);
      if (found) return found;
    }
    done.add(path);
    return null;
  };
  for (const path of graph.keys()) {
    const found = visit(path, []);
    if (found) return found;
  }
  return null;
}

test("no module imports itself by any way around", () => {
  assert.equal(circleIn(graphOf(texts)), null);
});

test("a circle would be found", () => {
  const circle = new Map([
    ["a.mjs", 'import { b } from "./codec/b.mjs";\n'],
    ["codec/b.mjs", 'import {\n  c,\n} from "../c.mjs";\n'],
    ["c.mjs", 'export * as a from "./a.mjs";\n'],
  ]);
  assert.deepEqual(circleIn(graphOf(circle)), ["a.mjs", "codec/b.mjs", "c.mjs", "a.mjs"]);
});

test("modules import each other and nothing else, and all are reached from the index", () => {
  const graph = graphOf(texts);
  for (const [path, to] of graph) for (const each of to) assert.ok(texts.has(each), `${path} imports ${each}`);
  const reached = new Set(["index.mjs"]);
  for (const path of reached) graph.get(path).forEach((to) => reached.add(to));
  assert.deepEqual([...reached].sort(), [...texts.keys()]);
});

test("every export has a comment in front of it that says what it does", () => {
  for (const [path, text] of texts) {
    if (path === "index.mjs") continue;
    const lines = text.split("\n");
    lines.forEach((line, at) => {
      if (!/^export (async )?(const|function|class) /.test(line) || /^export const (ID|NAME) = /.test(line)) return;
      // Constants of one kind may share the comment of the first.
      let above = at - 1;
      while (/^export const .*;$/.test(line) && /^export const .*;$/.test(lines[above])) above--;
      assert.match(lines[above], /\*\/$/, `${path}:${at + 1} has no comment: ${line}`);
    });
  }
});

test("randomness comes from the system's generator only, and nothing of the page is touched", () => {
  for (const [path, text] of texts) {
    const code = text.replace(/\/\*[^]*?\*\/|\/\/.*$/gm, "");
    assert.doesNotMatch(code, /\bMath\.random\b|\bdocument\b|\bwindow\b|\bfetch\(/, path);
  }
});
