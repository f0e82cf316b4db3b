"""`export_bundle`: from a torch module to a bundle, saved or in memory. `seedmask export` calls the same function."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from export.make import make_bundle, names
from seedmask.bundle import MAX_BYTES, Bundle, to_bytes
from seedmask.errors import MissingPackageError, UserError
from seedmask.io.files import write_atomic
from seedmask.spec import LOSSES
from seedmask.wire import is_name

if TYPE_CHECKING:
    from torch import nn


class Example(Protocol):
    """A batch of examples, a NumPy array or a torch tensor, of which only the shape is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape, batch first."""


def export_bundle(
    module: nn.Module,
    *,
    input: Sequence[int] | Example,
    classes: int,
    name: str | None = None,
    seed: int | None = None,
    range: tuple[int, int] = (0, 255),
    batch: int = 128,
    runtimes: Sequence[str] = ("onnx",),
    scale: str = "kaiming",
    gain: float | Sequence[float] = 1.0,
    loss: str = LOSSES[0],
    replace_batchnorm: str | None = None,
    exact: Sequence[str] = (),
    frozen: Sequence[str] = (),
    path: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    on_note: Callable[[str], None] | None = None,
    on_target: Callable[[str], None] | None = None,
) -> Bundle:
    """Return the bundle with which devices train masks of `module`, and write it to `path` if one is given.

    Only the architecture is taken: the module's weights are replaced by random signs that every device makes from the
    seed. `module.forward` takes one tensor [n, *input] and returns [n, classes].

        from torch import nn
        from export import export_bundle

        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
        bundle = export_bundle(net, input=(1, 28, 28), classes=10, name="small", path="small.bundle")

    input: shape of one example, one to three sides, or a batch of examples (array or tensor), whose first axis is
        dropped.
    classes: number of classes, 2 .. 65536; with loss "mse" of outputs, 1 .. 65536.
    name: the model's name, a-z, 0-9 and '-', at most 63 characters (default: the module's class, in lower case).
    seed: 0 .. 2**64 - 1, makes the frozen weights (default: random).
    range: raw input values (low, high), 32-bit integers, that devices map to -1 and 1.
    batch: examples per training step, 1 .. 65536.
    runtimes: targets whose graphs go into the bundle, of `export.make.names()`; "onnx" is for onnxruntime.
    scale: size of a weight by its fan-in: "kaiming" sqrt(2/n), "paper" e sqrt(1/n) (FedPM: Isik et al., arXiv
        2209.15328), "unit" sqrt(1/n).
    gain: multiplies that size, above 0: one number, or one for each layer with weights.
    loss: "cross-entropy", or "mse" for targets float32 [n, classes].
    replace_batchnorm: "group" puts GroupNorm in place of BatchNorm, which is refused otherwise.
    exact: patterns (fnmatch) of parameters that are trained and sent as numbers; "norm" and "bias" stand for all such.
    frozen: patterns of parameters that stay random signs, without a mask.
    path: file to write, replaced at once; `overwrite` allows that it exists.
    on_note: is told, a sentence each, where the bundle differs from the module, for example dropout left out.
    on_target: is told each target's name before its graphs are made.

    Raises UserError (`seedmask.errors`) for an argument out of range, a layer that is not supported (it is named, with
    what is) or a bundle too large to be opened; its subclass MissingPackageError if torch or a target's packages are
    not installed; TypeError if `module` is no torch module; FileExistsError or another OSError if `path` cannot be
    written.
    """
    try:
        from torch import nn

        from export.trace import trace
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"export_bundle needs {error.name}: pip install 'seedmask[export]'") from None
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a torch.nn.Module, found a {type(module).__name__}")
    shape = tuple(input.shape[1:]) if hasattr(input, "shape") else tuple(input)
    name = name_of(type(module).__name__) if name is None else name
    seed = secrets.randbits(64) if seed is None else seed
    check(input=shape, classes=classes, name=name, seed=seed, range=range, batch=batch, runtimes=runtimes, loss=loss)
    spec = trace(
        *(module, name, seed, shape, range, classes, scale, gain),
        loss=loss,
        replace_batchnorm=replace_batchnorm,
        announce=on_note or (lambda note: None),
        exact=exact,
        frozen=frozen,
    )
    if path is not None and not overwrite and Path(path).exists():  # before making graphs, which may take minutes
        raise FileExistsError(errno.EEXIST, "exists, and overwrite is not set", os.fspath(path))
    bundle = make_bundle(spec, batch, runtimes, on_target=on_target)
    data = to_bytes(bundle)
    if len(data) > MAX_BYTES:
        raise UserError(f"the bundle has {len(data):,} bytes; at most {MAX_BYTES:,} can be opened")
    if path is not None:
        write_atomic(Path(path), data)
    return bundle


def name_of(factory: str) -> str:
    """Return the model's name that follows from the name of a class or function: Small_Net is small-net."""
    return factory.rpartition(".")[2].lower().replace("_", "-").strip("-")


def check(
    *,
    input: Sequence[int] | None = None,
    classes: int | None = None,
    name: str | None = None,
    seed: int | None = None,
    range: Sequence[int],
    batch: int,
    runtimes: Sequence[str],
    loss: str,
) -> None:
    """Check arguments that need no torch; None stands for a value that is not known yet.

    Raises UserError that names the argument in backquotes, and says what was found and what is possible.
    """
    if loss not in LOSSES:
        raise UserError(f"`loss` is one of {', '.join(LOSSES)}, found {loss!r}")
    if not 1 <= batch <= 1 << 16:
        raise UserError(f"`batch` is 1 .. 65536, found {batch}")
    if len(range) != 2 or not -(1 << 31) <= range[0] < range[1] < 1 << 31:
        raise UserError(f"`range` is LOW,HIGH, 32-bit integers with LOW below HIGH, found {_comma(range)}")
    known = names()
    for runtime in runtimes:
        if runtime not in known:
            raise UserError(
                f"`runtimes` is one or more of {', '.join(known)}, found {runtime!r}{_OF_RUNTIME.get(runtime, '')}"
            )
    least = 1 if loss == "mse" else 2
    if classes is not None and not least <= classes <= 1 << 16:
        raise UserError(f"`classes` is {least} .. 65536, found {classes}")
    if name is not None and not is_name(name):
        raise UserError(f"`name` is a-z, 0-9 and '-', at most 63 characters, found {name!r}")
    if seed is not None and not 0 <= seed < 1 << 64:
        raise UserError(f"`seed` is 0 .. 2**64 - 1, found {seed}")
    if input is not None and (not 1 <= len(input) <= 3 or min(input) < 1):
        raise UserError(f"`input` is one to three sides of at least 1, like 1,28,28, found {_comma(input)}")


# Names of runtimes on devices that people give where the name of a target is expected.
_OF_RUNTIME = {
    "onnxruntime": "; runtime onnxruntime trains with onnx",
    "onnxruntime-cuda": "; runtime onnxruntime_cuda trains with onnx,onnx-gpu",
    **dict.fromkeys(("torch", "reference"), "; that runtime needs no graphs, any bundle will do"),
}


def _comma(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers)) or "nothing"
