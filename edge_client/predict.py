"""`seedmask predict`: run a finished model on examples, with any runtime of this machine; torch is not needed.

onnxruntime runs the evaluation graph of the bundle that the fleet trained with. The model's file has no graph of its
own: it would add kilobytes, and a reader would have to trust it. Without a bundle, torch or the NumPy reference
builds the network from the layers in the spec.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client import runtimes
from edge_client.data import Dataset, check_inputs, check_targets, doubtful_range, idx, npz
from edge_client.runtimes import F32, Runtime
from seedmask import bundle as bundles
from seedmask import model as models
from seedmask.bundle import Bundle
from seedmask.errors import BundleError, UserError
from seedmask.io.commands import Command
from seedmask.model import FinishedModel
from seedmask.spec import ModelSpec

DATASETS: Final = "seedmask.datasets"
_BATCH: Final = 250  # examples at a time at most, so that memory does not grow with their number
_VALUES: Final = 1 << 23  # outputs of all layers at a time at most; 64 MB in float64, of which a few copies are held

EPILOG = """\
DATA is an .npz archive with x and, if there are labels, y; one array as .npy; an IDX file (MNIST's format, .gz or not);
or the name of a data set that an installed package brings (the simulator brings digits, fashion-mnist and others).
Give inputs as the devices have them, for example images as bytes 0 .. 255: the model's file says how to scale them.

examples:
  seedmask predict model.smk --data mine.npz
  seedmask predict model.smk --data t10k-images-idx3-ubyte.gz --labels t10k-labels-idx1-ubyte.gz --quiet
  seedmask predict model.smk --data fashion-mnist --json
"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", type=Path, metavar="MODEL", help="file of a finished model (.smk)")
    parser.add_argument("--data", required=True, metavar="DATA", help="a file with examples, or a data set's name")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the files of the named data set")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="file with the true classes: .npy, .npz or IDX")
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="FILE",
        help="the bundle that the fleet trained with, needed by onnxruntime (default: looked for beside MODEL)",
    )
    parser.add_argument(
        "--runtime", default="auto", help="one that `seedmask client runtimes` lists as ready; auto: the fastest (auto)"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads to compute with; 0: all cores (0)")
    parser.add_argument("--probabilities", action="store_true", help="also print every class's probability")
    parser.add_argument("-q", "--quiet", action="store_true", help="print no predictions, only the summary")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace) -> int:
    if not 0 <= options.threads <= 1024:
        raise UserError(f"--threads is 0 (all cores) .. 1024, found {options.threads}")
    model = models.load(options.model)
    x, y = _examples(options.data, options.labels, options.data_dir)
    x = check_inputs(x, model.spec)
    if y is not None:
        y = check_targets(y, len(x), model.spec)
    mse = model.spec.loss == "mse"
    if mse and options.probabilities:
        raise UserError(f"model {model.spec.name} gives numbers, not classes: it has no --probabilities")
    if doubt := doubtful_range(Dataset(x, np.zeros(0, np.int64)), model.spec):
        print(f"warning: {doubt}", file=sys.stderr)
    began = time.perf_counter()
    name, runtime = open_for(model, options.model, options.bundle, options.runtime, options.threads)
    loaded = time.perf_counter()
    logits = logits_of(runtime, model, x)
    spent = time.perf_counter() - loaded
    predictions = (logits if mse else logits.argmax(1)).tolist()
    accuracy = None if mse or y is None else round(float((logits.argmax(1) == y).mean()), 6)
    error = None if y is None or not mse else round(float(((logits - y) ** 2).mean()), 6)
    if options.json:
        facts: dict[str, Any] = {
            "model": model.spec.digest.hex(),
            "runtime": name,
            "examples": len(x),
            **({"mean_squared_error": error} if mse else {"accuracy": accuracy}),
            "load_s": round(loaded - began, 4),
            "predict_s": round(spent, 4),
        }
        if not options.quiet:
            facts["predictions"] = predictions
        if options.probabilities:
            facts["probabilities"] = np.round(softmax(logits), 6).tolist()
        print(json.dumps(facts))
        return 0
    if not options.quiet:
        shares = softmax(logits) if options.probabilities else np.zeros((len(x), 0))
        for k, row in zip(predictions, shares.tolist(), strict=True):
            print("\t".join([*(map(str, k) if mse else [str(k)]), *(f"{p:.6f}" for p in row)]))
    right = "" if accuracy is None else f", {accuracy:.2%} right"
    right = right if error is None else f", mean squared error {error:g}"
    print(
        f"{len(x):,} examples{right}; {name}, {loaded - began:.2f} s to load, {1e3 * spent / len(x):.3f} ms an example",
        file=sys.stderr,
    )
    return 0


def open_for(model: FinishedModel, path: Path, bundle: Path | None, runtime: str, threads: int) -> tuple[str, Runtime]:
    """Return (name, runtime) for the model at `path`; `runtime` "auto" chooses the fastest one that is ready.

    `bundle` is the file of the bundle; None looks for it beside the model. `threads` 0: one per core. Raises UserError
    if the runtime is unknown, is not installed, or needs a bundle that was not found.
    """
    opened = bundles.of_model(model.spec, path, bundle) or Bundle(model.spec, batch_of(model.spec), {})
    if runtime == "auto":
        able = [] if runtimes.lacking("onnxruntime", opened) else ["onnxruntime"]
        runtime = next((name for name in (*able, "torch") if not runtimes.missing(name)), "reference")
    runtimes.require(runtime)
    try:
        return runtime, runtimes.open_runtime(runtime, opened, threads)
    except BundleError as error:
        why = f": {error}" if opened.files else ""
        raise UserError(f"runtime {runtime} needs the bundle that the fleet trained with (--bundle){why}") from None


def predictor(model: FinishedModel, bundle: Bundle | None) -> Callable[[npt.NDArray[Any]], F32]:
    """Return a function from raw inputs [n, *input] to class scores, float32 [n, classes].

    It runs on onnxruntime if that is installed and `bundle` has its graphs, otherwise on NumPy, and raises UserError
    for inputs that do not fit `model`. `seedmask.load_model` finds it by the entry point group `seedmask.predictors`.
    """
    opened = bundle or Bundle(model.spec, batch_of(model.spec), {})
    able = not runtimes.lacking("onnxruntime", opened) and not runtimes.missing("onnxruntime")
    runtime = runtimes.open_runtime("onnxruntime" if able else "reference", opened)
    return lambda x: logits_of(runtime, model, check_inputs(x, model.spec))


def logits_of(runtime: Runtime, model: FinishedModel, x: npt.NDArray[Any]) -> F32:
    """Return class scores, float32 [n, classes], for raw inputs x [n, *input]."""
    mask, exact, batch = model.mask.astype(np.float32), model.values(), batch_of(model.spec)
    pieces = (model.spec.normalise(x[at : at + batch]) for at in range(0, len(x), batch))
    return np.concatenate([runtime.logits(piece, mask, exact) for piece in pieces])


def batch_of(spec: ModelSpec) -> int:
    """Return how many examples to predict at a time: torch and the reference keep the output of every layer."""
    return max(1, min(_BATCH, _VALUES // sum(map(math.prod, spec.shapes()))))


def softmax(logits: F32) -> npt.NDArray[np.float64]:
    """Return the probabilities, float64 [n, classes], of class scores [n, classes]."""
    power = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares: npt.NDArray[np.float64] = power / power.sum(1, keepdims=True)
    return shares


def _examples(data: str, labels: Path | None, folder: Path | None) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Return the inputs as stored, and the labels or other targets as stored, or None. Raises UserError."""
    path = Path(data)
    named = {entry.name: entry for entry in importlib.metadata.entry_points(group=DATASETS)}
    if not path.exists() and data in named:
        try:
            brought: Dataset = named[data].load()(folder).test
        except ImportError as error:
            raise UserError(f"data set {data} needs {error.name}: pip install 'seedmask[sim]'") from None
        x, y = brought.x, brought.y
    elif not path.exists() and path.name == data and not path.suffix:
        raise UserError(f"{data} is neither a file here nor a data set's name; names: {', '.join(sorted(named))}")
    else:
        x, y = _read(path)
    if labels is not None:
        first, second = _read(labels)
        y = first if second is None else second  # an .npz with x and y, or one array, which is the labels
        if y.ndim not in (1, 2) or y.dtype.kind not in "uif":
            raise UserError(f"{labels}: labels are [n] integers, found {y.dtype} {list(y.shape)}")
    return x, y


def _read(path: Path) -> tuple[npt.NDArray[Any], Any]:
    """Return (array, labels or None) of one file, whose first bytes tell its format. Raises UserError."""
    try:
        with open(path, "rb") as file:
            head = file.read(6)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if head[:2] == b"PK":
        arrays = npz.arrays(path)
        if "x" not in arrays:
            raise UserError(f"{path} has arrays {', '.join(arrays) or 'of no name'}; it lacks x")
        return arrays["x"], arrays.get("y")
    if head == b"\x93NUMPY":
        try:
            return np.load(path, allow_pickle=False), None  # a pickle is a program, not data
        except (ValueError, MemoryError, OverflowError) as error:  # the header may claim any shape
            raise UserError(f"{path} is not an array of numbers: {error}") from None
    return idx.read(path), None


COMMAND = Command("predict", "run a finished model on examples", (), "onnxruntime", _arguments, _run)
