"""`seedmask export-model`: a finished model for other programs to run, in one of the formats of `export.formats`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from export.formats import FORMATS, Wish
from seedmask import model as models
from seedmask.errors import MissingPackageError, UserError
from seedmask.io.commands import Command
from seedmask.io.files import check_output, write_atomic
from seedmask.model import FinishedModel

EPILOG: Final = """\
ONNX and ExecuTorch files take raw inputs float32 [n, ...], with values as in the devices' data (0 .. 255 for images),
and return logits float32 [n, classes]. ONNX files name them x and logits; any runtime for ONNX opens them. ExecuTorch
files have one method, forward, and run on XNNPACK.

executorch-int8 rounds the values between layers to 256 levels. The range of these is measured on --calibration: some
hundred inputs like those to come.

A state_dict has the parameter names of the module that was exported. That module takes inputs scaled to -1 .. 1
(seedmask.spec.ModelSpec.normalise). The weight of a Conv1d has the shape [out, in, 1, k]: drop its third dimension.

examples:
  seedmask export-model model.smk --to onnx -o model.onnx
  seedmask export-model model.smk --to onnx-int8 --batch 1 -o model.onnx
  seedmask export-model model.smk --to torch -o model.pt
  seedmask export-model model.smk --to executorch-int8 --calibration mine.npz -o model.pte
"""


def _calibration(path: Path, model: FinishedModel) -> npt.NDArray[Any]:
    """Read raw inputs [n, *input] from an .npy file, or from array x of an .npz archive. Raises UserError."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            x = np.asarray(found["x"] if isinstance(found, np.lib.npyio.NpzFile) else found)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"--calibration {path}: an .npy file, or .npz with x, is expected: {error}") from None
    if x.shape[1:] != model.spec.input or not len(x) or x.dtype.kind not in "uif":
        raise UserError(f"--calibration {path}: numbers [n, {model.spec.input}] expected, found {x.dtype} {x.shape}")
    return x


def _arguments(parser: argparse.ArgumentParser) -> None:
    formats = "\n".join(f"  {name:<17}{made.what}" for name, made in FORMATS.items())
    parser.epilog = f"formats:\n{formats}\n\n{EPILOG}"
    parser.add_argument("model", type=Path, metavar="MODEL", help="the .smk file of a finished job")
    parser.add_argument(
        "--to", required=True, choices=tuple(FORMATS), metavar="FORMAT", help=f"one of {', '.join(FORMATS)} (see below)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--batch",
        type=int,
        default=0,
        metavar="N",
        help="examples per call; 0 (default): any number in ONNX, 1 in ExecuTorch",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="file of raw inputs, .npy or .npz with x; only for executorch-int8",
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON object")


def _run(options: argparse.Namespace) -> int:
    output: Path = options.output
    made = FORMATS[options.to]
    if importlib.util.find_spec(made.needs) is None:
        extra = "executorch" if made.needs == "executorch" else "export"
        raise MissingPackageError(f"--to {options.to} needs {made.needs}: pip install 'seedmask[{extra}]'")
    if made.calibrated is not (options.calibration is not None):
        verb = "needs" if made.calibrated else "takes no"
        raise UserError(f"--to {options.to} {verb} --calibration")
    if not 0 <= options.batch <= 1 << 16:
        raise UserError(f"--batch is 0 (any) .. 65536, found {options.batch}")
    check_output(output)
    if output.exists() and not options.force:
        raise UserError(f"{output} exists; --force overwrites it")
    model = models.load(options.model)
    shown = None if options.calibration is None else _calibration(options.calibration, model)
    if shown is not None and len(shown) < options.batch:
        raise UserError(f"--calibration has {len(shown)} inputs, --batch {options.batch} takes as many at least")
    data = made.write(model, Wish(options.batch, shown))
    write_atomic(output, data)
    bits = 8 * len(data) / model.spec.d
    if options.json:
        facts = {"file": str(output), "to": options.to, "model": model.spec.digest.hex(), "bytes": len(data)}
        print(json.dumps(facts | {"bits_per_parameter": round(bits, 4)}))
    else:
        print(f"wrote {output}, {len(data):,} bytes, {bits:.2f} bit per parameter: {made.what}")
    return 0


COMMAND: Final = Command(
    name="export-model",
    summary="turn a finished model into ONNX, ExecuTorch or a torch state_dict",
    needs=("onnx",),
    extra="export",
    add_arguments=_arguments,
    run=_run,
)
