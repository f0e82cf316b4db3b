"""`seedmask export`: from a torch model's name to a bundle file. torch is imported only when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from export.api import check, export_bundle
from export.make import names
from seedmask.describe import by, is_chain, label
from seedmask.errors import UserError
from seedmask.io.commands import Command, as_options
from seedmask.io.files import check_output
from seedmask.layers import Weighted
from seedmask.spec import LOSSES, ModelSpec

EPILOG: Final = """\
The model is a name from the zoo, or module:factory, where calling the factory without arguments gives a
torch.nn.Module (the current directory is searched first). Its forward() may add and join branches of Linear, Conv1d
and Conv2d, the usual activations, pooling and means, reshapes, GroupNorm, LayerNorm and RMSNorm. Only the architecture
is used: weights are random signs, which every device makes from the seed, and each has a mask unless --frozen or
--exact says otherwise. A note is printed for everything that is left out: dropout, and a norm's scales and shifts
without --exact.

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
  mlpa      mlpn with parameters for --exact   1x28x28   10 classes     234,762 weights
  conv4a    conv4n with parameters for --exact 1x28x28   10 classes     102,314 weights

examples:
  seedmask export mlp -o mlp.bundle
  seedmask export conv4 --batch 32 --seed 7 -o conv4.bundle
  seedmask export nets:Small --input 1,28,28 --classes 10 -o small.bundle      # class Small in ./nets.py
  seedmask export sensors.nets:make --input 6,1,128 --classes 5 --range=-8,8 -o gait.bundle
  seedmask export nets:Small --input 1,28,28 --classes 10 --exact norm --exact head.bias -o small.bundle

If a device runs out of memory, set memory_mb in its edge.toml: it then takes a batch a few examples at a time, and
needs less memory with --runtimes onnx,onnx-lean. For CUDA and WebGPU, export --runtimes onnx,onnx-gpu.
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="a name from the zoo, or package.module:factory")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="the bundle to write")
    parser.add_argument(
        "--input", type=_integers, metavar="C,H,W", help="shape of one example; the zoo's models have theirs"
    )
    parser.add_argument(
        "--classes",
        type=int,
        metavar="N",
        help="number of classes, or of outputs for --loss mse; the zoo's models have theirs",
    )
    parser.add_argument("--name", metavar="NAME", help="the model's name [a-z0-9-] (default: the factory's)")
    parser.add_argument(
        "--seed",
        type=_seed,
        metavar="INT|0xHEX",
        help="64 bits from which every device makes the weights (default: random, printed)",
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
        help=f"make graphs for these, separated by commas: {', '.join(names())} (default onnx, for onnxruntime)",
    )
    parser.add_argument("--batch", type=int, default=128, metavar="N", help="examples per training step (default 128)")
    parser.add_argument(
        "--scale",
        choices=("kaiming", "paper", "unit"),
        default="kaiming",
        help="size of a weight: kaiming sqrt(2/fan_in), which learns fastest (default), paper e*sqrt(1/fan_in), unit "
        "sqrt(1/fan_in)",
    )
    parser.add_argument(
        "--gain",
        type=_numbers,
        default=(1.0,),
        metavar="X",
        help="multiplies the size of weights: one number, or one for each layer with weights, like 1,1,0.5 (default 1)",
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
        help="put GroupNorm in place of BatchNorm, whose running means and scales cannot be masked",
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
    try:
        return _export(options)
    except UserError as error:
        raise type(error)(as_options(str(error))) from None


def _export(options: argparse.Namespace) -> int:
    output: Path = options.output
    check_output(output)
    check(
        input=options.input,
        classes=options.classes,
        name=options.name,
        range=options.range,
        batch=options.batch,
        runtimes=options.runtimes,
        loss=options.loss,
    )
    from export.find import find

    found = find(options.model, options.input, options.classes, options.name)
    notes: list[str] = []
    try:
        bundle = export_bundle(
            found.module,
            input=found.input,
            classes=found.classes,
            name=found.name,
            seed=options.seed,
            range=options.range,
            batch=options.batch,
            runtimes=options.runtimes,
            scale=options.scale,
            gain=options.gain[0] if len(options.gain) == 1 else options.gain,
            loss=options.loss,
            replace_batchnorm=options.replace_batchnorm,
            exact=options.exact,
            frozen=options.frozen,
            path=output,
            overwrite=options.force,
            on_note=lambda note: notes.append(as_options(note)),
            on_target=_patience,
        )
    except FileExistsError:
        raise UserError(f"{output} exists; --force overwrites it") from None
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from None
    made = {**_description(bundle.spec, options.batch, output, output.stat().st_size), "notes": notes}
    print(json.dumps(made) if options.json else _table(bundle.spec, made))
    return 0


def _patience(target: str) -> None:
    if target == "executorch":
        print("making the program for executorch: half a minute, deep networks several", file=sys.stderr, flush=True)


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
            f"inputs  {made['range'][0]} .. {made['range'][1]} become -1 .. 1 (--range)",
            f"batch   {made['batch']}",
            f"wrote   {made['bundle']}, {made['bytes']:,} bytes, no weight among them",
        ]
    )


def _by(shape: Any) -> str:
    return "x".join(map(str, shape))


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
