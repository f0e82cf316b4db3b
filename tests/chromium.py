"""A headless Chromium that runs the web client: `Page` sends jobs to tests/page.mjs and gives what comes back.

No driver: the page asks a server on the loopback address for its next job and posts the result. Used by
tests/test_browser.py and bench/browser.py; `.ci/browser` installs what it needs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from capabilities import BROWSERS, ONNXRUNTIME_WEB, ROOT

from edge_client.runtimes import F32, NOTHING, DivergedError, Exact, State, StepConfig, StepResult, Targets
from seedmask.bundle import Bundle, to_bytes

WEB = ROOT / "web" / "src"
HTML = b"""<!doctype html><title>seedmask</title><script>
const tell = (text) => fetch("/broken", { method: "POST", body: text });
const worker = new Worker("/page.mjs", { type: "module" });
worker.onerror = (event) => tell(event.message || "the worker could not be loaded");
</script>"""
TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm"}

Arrays = Mapping[str, Any]


class Page:
    """One browser with one page, in a process group of its own, until `close`."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[bytes] = queue.Queue()
        self._results: queue.Queue[bytes | str] = queue.Queue()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._jobs, self._results))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._profile = tempfile.TemporaryDirectory(prefix="seedmask-chromium-", ignore_cleanup_errors=True)
        command = [
            next(filter(None, map(shutil.which, BROWSERS))),
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            # It calls home for updates and lists otherwise; this page needs no name resolved.
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(
                "--disable-extensions",
                "--no-default-browser-check",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ),
            *("--disable-background-timer-throttling", "--disable-renderer-backgrounding"),
            f"--user-data-dir={self._profile.name}",
            f"http://127.0.0.1:{self._server.server_port}/",
        ]
        self._log = Path(self._profile.name) / "stderr"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
            )

    def call(self, op: str, head: Mapping[str, Any], arrays: Arrays, timeout: float = 60) -> dict[str, Any]:
        """One job of page.mjs. Raises what the page threw, as ours, and TimeoutError."""
        self._jobs.put(_pack({"op": op, **head}, arrays))
        answer: bytes | str | None = None
        for _ in range(math.ceil(timeout)):
            with contextlib.suppress(queue.Empty):
                answer = self._results.get(timeout=1)
                break
            if self.process.poll() is not None:
                raise RuntimeError(f"Chromium ended with status {self.process.returncode}: {self._last_words()}")
        if answer is None:
            raise TimeoutError(f"the page did not answer {op!r} in {timeout:g} seconds: {self._last_words()}")
        if isinstance(answer, str):
            raise RuntimeError(f"the page broke: {answer}")
        result = _unpack(answer)
        if "error" in result:
            kind = {"RangeError": ValueError, "DivergedError": DivergedError}.get(result["error"], RuntimeError)
            raise kind(f"{result['error']}: {result['text']}")
        return result

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace")[-1000:]

    def close(self) -> None:
        """End the browser and all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self._server.shutdown()
        self._server.server_close()
        self._profile.cleanup()


class PageRuntime:
    """edge_client.runtimes.Runtime, carried out by a page."""

    def __init__(self, page: Page, bundle: Bundle) -> None:
        self.page, self.bundle, self.name = page, bundle, bundle.spec.name
        page.call("open", {"name": self.name}, {"bundle": np.frombuffer(to_bytes(bundle), np.uint8)})

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> StepResult:
        """One step on the scores."""
        vectors = {name: getattr(state, name) for name in ("scores", "m", "v", "anchor")}
        vectors |= {f"exact_{name}": getattr(state.exact, name) for name in ("values", "m", "v")}
        head = {"name": self.name, "t": state.t, "rule": rule_in_js(rule)}
        found = self.page.call("step", head, {"x": x, "y": targets(y), "noise": noise, **vectors})
        exact = Exact(found["exact_values"], found["exact_m"], found["exact_v"])
        after = State(found["scores"], found["m"], found["v"], found["t"], found["anchor"], exact)
        return StepResult(after, found["loss"], found["correct"])

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """Class scores [n, classes]."""
        found: F32 = self.page.call("logits", {"name": self.name}, {"x": x, "mask": mask, "exact": exact})["logits"]
        return found.reshape(len(x), -1)


def targets(y: Targets) -> Targets:
    """As the page takes them: float32, or class numbers as int32."""
    return y if y.dtype == np.float32 else y.astype(np.int32)


def rule_in_js(rule: StepConfig) -> dict[str, Any]:
    """`rule` as runtime.mjs names its parts."""
    values = {name: getattr(rule, name) for name in ("rate", "optimizer", "momentum", "kl", "sparsity", "mean")}
    return {**values, "timesTheta": rule.times_theta, "exactRate": rule.exact_rate}


def _pack(head: Mapping[str, Any], arrays: Arrays) -> bytes:
    listed = [{"name": name, "kind": array.dtype.name, "count": array.size} for name, array in arrays.items()]
    text = json.dumps({**head, "arrays": listed}).encode()
    return b"".join(
        [len(text).to_bytes(4, "little"), text, *(np.ascontiguousarray(a).tobytes() for a in arrays.values())]
    )


def _unpack(data: bytes) -> dict[str, Any]:
    at = 4 + int.from_bytes(data[:4], "little")
    head: dict[str, Any] = json.loads(data[4:at])
    for entry in head.pop("arrays"):
        head[entry["name"]] = np.frombuffer(data, entry["kind"], entry["count"], at).copy()
        at += head[entry["name"]].nbytes
    return head


def _served(url: str) -> Path | None:
    """The file behind a path of the page: /web/ the client's modules, /ort/ onnxruntime-web, else a file of tests/."""
    prefix, home = next(
        pair for pair in (("/web/", WEB), ("/ort/", ONNXRUNTIME_WEB), ("/", ROOT / "tests")) if url.startswith(pair[0])
    )
    path = home / url.removeprefix(prefix)
    return path if ".." not in path.parts and path.suffix in TYPES and path.is_file() else None


def _handler(jobs: queue.Queue[bytes], results: queue.Queue[bytes | str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The page, its modules, or the next job (204: none yet, ask again)."""
            if self.path == "/":
                return self._answer(200, HTML, "text/html")
            if self.path == "/next":
                try:
                    return self._answer(200, jobs.get(timeout=10), "application/octet-stream")
                except queue.Empty:
                    return self._answer(204, b"", "text/plain")
            if (path := _served(self.path)) is None:
                return self._answer(404, b"", "text/plain")
            return self._answer(200, path.read_bytes(), TYPES[path.suffix])

        def do_POST(self) -> None:
            """A result, or the reason why there will be none."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            results.put(body if self.path == "/result" else body.decode(errors="replace"))
            self._answer(204, b"", "text/plain")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the browser went first
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Silent."""

    return Handler
