"""`seedmask export`: from a torch model's name to a bundle file. torch is imported only when it runs."""

from __future__ import annotations

import argparse
import importlib
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from export.make import make_bundle, names
from seedmask.bundle import MAX_BYTES, to_bytes
from seedmask.describe import by, is_chain, label
from seedmask.errors import UserError
from seedmask.io.commands import Command
from seedmask.io.files import check_output, write_atomic
from seedmask.layers import Weighted
from seedmask.spec import LOSSES, ModelSpec
from seedmask.wire import is_name

if TYPE_CHECKING:
    from torch import nn

EPILOG: Final = """\
The model is a name from the zoo, or module:factory, where calling the factory without arguments gives a
torch.nn.Module (the current directory is searched first). Its forward() may add and join branches of Linear, Conv1d
and Conv2d, the usual activations, pooling and means, reshapes, GroupNorm, LayerNorm and RMSNorm. Only the architecture
is taken: weights are random signs, which every device makes again from the seed, and each has a mask unless --frozen or
--exact says otherwise. What is left out (a norm's scales and shifts without --exact, dropout) is said.

the zoo:
  mlp       784-256-128-10, no biases          1x28x28   10 classes     234,752 weights
  mlpn      mlp with GroupNorm                 1x28x28   10 classes     234,752 weights
  conv4     FedPM's CONV-4                     1x28x28   10 classes   1,933,258 weights
  conv4s    32-32-64-64-fc64-10, strided       1x28x28   10 classes     102,304 weights
  conv4n    conv4s with GroupNorm              1x28x28   10 classes     102,304 weights
  conv6     FedPM's CONV-6                     3x32x32   10 classes   2,262,602 weights
  conv10    FedPM's CONV-10                    3x32x32  100 classes  19,197,092 weights
  lenet5    LeNet-5 with ReLU                  1x28x28   10 classes      61,706 weights
  resnet20  ResNet-20 with GroupNorm           3x32x32   10 classes     270,906 weights
  resnet20g the same for grey images           1x28x28   10 classes     270,618 weights
  mobile    a small MobileNetV2                3x32x32   10 classes     102,394 weights
  sensor1d  a CNN for sequences                  9x128    6 classes      32,550 weights
  mixer     a small MLP-Mixer                  1x28x28   10 classes     107,046 weights
  mlpa      mlpn, more to train, for --exact   1x28x28   10 classes     234,762 weights
  conv4a    conv4n, the same                   1x28x28   10 classes     102,314 weights

examples:
  seedmask export mlp -o mlp.bundle
  seedmask export conv4 --batch 32 --seed 7 -o conv4.bundle
  seedmask export nets:Small --input 1,28,28 --classes 10 -o small.bundle      # class Small in ./nets.py
  seedmask export sensors.nets:make --input 6,1,128 --classes 5 --range=-8,8 -o gait.bundle
  seedmask export nets:Small --input 1,28,28 --classes 10 --exact norm --exact head.bias -o small.bundle

A device that runs out of memory wants memory_mb in its edge.toml: it then takes a batch a few examples at a time.
--runtimes onnx,onnx-lean has graphs that need less for that; onnx-gpu has steps for CUDA's and WebGPU's operators.
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="a name from the zoo, or package.module:factory")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="the bundle to write")
    parser.add_argument("--input", type=_integers, metavar="C,H,W", help="shape of one example (zoo: known)")
    parser.add_argument(
        "--classes", type=int, metavar="N", help="number of classes, or of outputs for --loss mse (zoo: known)"
    )
    parser.add_argument("--name", metavar="NAME", help="the model's name [a-z0-9-] (default: the factory's)")
    parser.add_argument(
        "--seed",
        type=_seed,
        metavar="INT|0xHEX",
        help="64 bits that make the frozen weights (default: random, printed)",
    )
    parser.add_argument(
        "--range",
        type=_integers,
        default=(0, 255),
        metavar="LOW,HIGH",
        help="raw input values that become -1 and 1 (default 0,255; write --range=-1,1 if LOW is negative)",
    )
    parser.add_argument(
        "--runtimes",
        type=lambda text: text.replace("_", "-").split(","),
        default=["onnx"],
        metavar="NAMES",
        help=f"what devices will train with, comma-separated, of {', '.join(names())} (default onnx, for onnxruntime)",
    )
    parser.add_argument("--batch", type=int, default=128, metavar="N", help="examples per training step (default 128)")
    parser.add_argument(
        "--scale",
        choices=("kaiming", "paper", "unit"),
        default="kaiming",
        help="size of a weight: sqrt(2/fan_in), which learns fastest, the paper's e*sqrt(1/fan_in), or sqrt(1/fan_in)",
    )
    parser.add_argument(
        "--gain",
        type=_numbers,
        default=(1.0,),
        metavar="X",
        help="multiplies that size: one number, or one per layer with weights like 1,1,0.5 (default 1)",
    )
    parser.add_argument(
        "--loss",
        choices=LOSSES,
        default=LOSSES[0],
        help="mse: the targets are N numbers for each example instead of one of N classes (default cross-entropy)",
    )
    parser.add_argument(
        "--replace-batchnorm",
        choices=("group",),
        metavar="group",
        help="put GroupNorm, which has nothing to learn and needs no other examples, where the model has BatchNorm",
    )
    parser.add_argument(
        "--exact",
        action="append",
        default=[],
        metavar="PATTERN",
        help="parameters, by torch's names, that are trained and sent as numbers, 65,536 in all at most: 'norm' "
        "(scales and shifts of normalisations), 'bias' (of all other layers), or a pattern like 'head.*'; repeatable",
    )
    parser.add_argument(
        "--frozen",
        action="append",
        default=[],
        metavar="PATTERN",
        help="parameters that are random signs without a mask, never trained; patterns as for --exact",
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    parser.add_argument("--json", action="store_true", help="print what was made as one JSON object")


def _run(options: argparse.Namespace) -> int:
    output: Path = options.output
    _check(options)

    from export.trace import trace

    factory, shape, classes, name = _find(options)
    model = _build(options.model, factory)
    seed = secrets.randbits(64) if options.seed is None else options.seed
    gain = options.gain[0] if len(options.gain) == 1 else options.gain
    notes: list[str] = []
    spec = trace(
        *(model, name, seed, shape, options.range, classes, options.scale, gain),
        loss=options.loss,
        replace_batchnorm=options.replace_batchnorm,
        announce=notes.append,
        exact=options.exact,
        frozen=options.frozen,
    )
    if output.exists() and not options.force:  # last: what --force cannot mend is said first
        raise UserError(f"{output} exists; --force overwrites it")
    if "executorch" in options.runtimes:
        print("making the program for executorch: half a minute, deep networks several", file=sys.stderr, flush=True)
    data = to_bytes(make_bundle(spec, options.batch, options.runtimes))
    if len(data) > MAX_BYTES:
        raise UserError(f"the bundle has {len(data):,} bytes; at most {MAX_BYTES:,} can be opened")
    try:
        write_atomic(output, data)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from None

    made = {**_description(spec, options.batch, output, len(data)), "notes": notes}
    print(json.dumps(made) if options.json else _table(spec, made))
    return 0


# What devices call runtimes, where the graphs are called otherwise.
_OF_RUNTIME = {
    "onnxruntime": "; runtime onnxruntime trains with onnx",
    "onnxruntime-cuda": "; runtime onnxruntime_cuda trains with onnx,onnx-gpu",
    **dict.fromkeys(("torch", "reference"), "; that runtime needs no graphs, any bundle will do"),
}


def _check(options: argparse.Namespace) -> None:
    """Hold every option against what is possible before torch is loaded. Raises UserError."""
    check_output(options.output)
    if not 1 <= options.batch <= 1 << 16:
        raise UserError(f"--batch is 1 .. 65536, found {options.batch}")
    if len(options.range) != 2 or not -(1 << 31) <= options.range[0] < options.range[1] < 1 << 31:
        raise UserError(f"--range is LOW,HIGH, 32-bit integers with LOW below HIGH, found {_comma(options.range)}")
    for name in options.runtimes:
        if name not in names():
            raise UserError(f"--runtimes is of {', '.join(names())}, found {name!r}{_OF_RUNTIME.get(name, '')}")
    least = 1 if options.loss == "mse" else 2
    if options.classes is not None and not least <= options.classes <= 1 << 16:
        raise UserError(f"--classes is {least} .. 65536, found {options.classes}")
    if options.name is not None and not is_name(options.name):
        raise UserError(f"--name is a-z, 0-9 and '-', at most 63 characters, found {options.name!r}")
    if options.input is not None and (len(options.input) > 3 or min(options.input) < 1):
        raise UserError(f"--input is one to three sides of at least 1, like 1,28,28, found {_comma(options.input)}")


def _find(options: argparse.Namespace) -> tuple[Callable[[], Any], tuple[int, ...], int, str]:
    """Factory, input shape, classes and name of the model that was asked for."""
    if ":" not in options.model:
        from export.zoo import ZOO

        if options.model not in ZOO:
            raise UserError(
                f"no model {options.model!r} in the zoo; there are {', '.join(ZOO)}.\n"
                "A model of your own is package.module:factory"
            )
        entry = ZOO[options.model]
        shape, classes = options.input or entry.input, options.classes or entry.classes
        return entry.factory, shape, classes, options.name or options.model
    if options.input is None or options.classes is None:
        raise UserError("a model of your own needs --input (shape of one example, like 1,28,28) and --classes")
    factory = _import(options.model)
    name = options.name or options.model.partition(":")[2].rpartition(".")[2].lower().replace("_", "-").strip("-")
    if not is_name(name):
        raise UserError(f"{name!r} cannot be a model's name; choose one with --name")
    return factory, options.input, options.classes, name


def _import(path: str) -> Callable[[], Any]:
    """The object that package.module:factory names."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UserError(f"a model is package.module:factory, found {path!r}")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").removeprefix("./").replace("/", ".").strip(".")
        raise UserError(f"a model is package.module:factory, no file; write {dotted}:{attribute}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        parents = [module_name.rsplit(".", i)[0] for i in range(module_name.count(".") + 1)]
        if error.name in parents:
            raise UserError(f"no module {error.name!r} in {Path.cwd()} or among the installed packages") from None
        raise UserError(f"importing {module_name} needs {error.name}, which is not installed") from None
    # A user's module can fail in any way at all; what it said is what helps.
    except Exception as error:
        raise UserError(f"importing {module_name} failed: {type(error).__name__}: {error}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(found) if not name.startswith("_") and callable(getattr(found, name))]
            raise UserError(f"{module_name} has no {attribute!r}; it has {', '.join(public) or 'nothing to call'}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{path} is no factory but a {type(found).__name__}; name what makes the model")
    return found  # type: ignore[no-any-return]


def _build(path: str, factory: Callable[[], Any]) -> nn.Module:
    from torch import nn

    if isinstance(factory, nn.Module):  # a finished module at the top of a file
        return factory
    try:
        model = factory()
    except Exception as error:
        raise UserError(f"{path}() failed: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise UserError(f"{path}() gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def _description(spec: ModelSpec, batch: int, output: Path, size: int) -> dict[str, Any]:
    layers: list[dict[str, Any]] = []
    for number, (layer, shape) in enumerate(zip(spec.layers, spec.shapes()[1:], strict=True)):
        tensors = [spec.offsets[name][0] for name in layer.tensors]
        layers.append(
            {
                "op": layer.op,
                "takes": list(layer.takes(number)),
                "tensors": {tensor.name: list(tensor.shape) for tensor in tensors},
                "kinds": {tensor.name: tensor.kind for tensor in tensors},
                "weights": sum(tensor.size for tensor in tensors),
                "output": list(shape),
                "constant": next((tensor.constant for tensor in tensors if tensor.kind != "exact"), None),
            }
        )
    return {
        "bundle": str(output),
        "bytes": size,
        "name": spec.name,
        "model": spec.digest.hex(),
        "seed": f"{spec.seed:#018x}",
        "d": spec.d,
        "frozen": spec.count("frozen"),
        "exact": spec.e,
        "input": list(spec.input),
        "range": list(spec.range),
        "classes": spec.classes,
        "loss": spec.loss,
        "batch": batch,
        "layers": layers,
    }


def _table(spec: ModelSpec, made: dict[str, Any]) -> str:
    rows: list[tuple[str, Any, str]] = [("input", spec.input, "")]
    for number, (layer, row) in enumerate(zip(spec.layers, made["layers"], strict=True)):
        what = label(spec, number)
        if isinstance(layer, Weighted):
            what = f"{layer.weight.rpartition('.')[0]}: {what}" + (" + bias" if layer.bias else "")
        size = "" if row["constant"] is None else f"   {row['constant']:.6f}"
        other = [f"{name.rpartition('.')[2]} {kind}" for name, kind in row["kinds"].items() if kind != "masked"]
        size += f"   {', '.join(other)}" if other else ""
        rows.append((what, row["output"], f"{row['weights']:>12,}{size}" if row["weights"] else ""))
    if not is_chain(spec):  # then layers are called by their numbers
        rows = [(f"{value:>3}  {what}", shape, numbers) for value, (what, shape, numbers) in enumerate(rows)]
    width = max(34, *(len(what) + 2 for what, *_ in rows))
    lines = [f"{'layer':<{width}}{'output':<16}{'weights':>12}   each +- c"]
    lines += [f"{what:<{width}}{by(shape):<16}{numbers}".rstrip() for what, shape, numbers in rows]
    lines += ["", *(f"note    {note}" for note in made["notes"])] if made["notes"] else []
    return "\n".join(
        [
            *lines,
            "",
            f"model   {made['name']}, {made['model'][:16]}",
            f"seed    {made['seed']}",
            f"masked  {made['d']:,} weights; an uncoded mask is {(made['d'] + 7) // 8:,} bytes",
            *([f"frozen  {made['frozen']:,} weights, without a mask"] if made["frozen"] else []),
            *([f"exact   {made['exact']:,} values, sent as numbers of 1 to 5 bytes"] if made["exact"] else []),
            f"batch   {made['batch']}",
            f"wrote   {made['bundle']}, {made['bytes']:,} bytes, no weight among them",
        ]
    )


def _by(shape: Any) -> str:
    return "x".join(map(str, shape))


def _comma(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"integers separated by commas expected, found {text!r}") from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers separated by commas expected, found {text!r}") from None


def _seed(text: str) -> int:
    try:
        seed = int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"an integer or 0x and hexadecimal digits expected, found {text!r}") from None
    if not 0 <= seed < 1 << 64:
        raise argparse.ArgumentTypeError(f"a seed is 0 .. 2**64 - 1, found {text}")
    return seed


COMMAND: Final = Command(
    name="export",
    summary="turn a torch model into a bundle that devices can train",
    needs=("torch", "onnx"),
    extra="export",
    add_arguments=_add_arguments,
    run=_run,
)
