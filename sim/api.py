"""Federated learning in one call: `simulate` runs a whole fleet, and says how it went."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from aggregator.rules import Rule
from aggregator.settings import AggregationConfig
from edge_client.data import Dataset
from seedmask.errors import UserError
from seedmask.training import TrainingConfig
from sim import output
from sim.datasets.own import Arrays
from sim.history import History
from sim.pool import Threads
from sim.report import RoundRecord
from sim.run import run
from sim.setup import Parameters, prepare

_TABLES: Final = {"training": TrainingConfig, "aggregation": AggregationConfig}


def simulate(
    model: Any,
    data: Arrays | Dataset | Path | str = "auto",
    *,
    test: Arrays | Dataset | Path | str | None = None,
    test_share: float | None = None,
    data_dir: Path | str | None = None,
    devices: int = 8,
    rounds: int = 20,
    split: str = "iid",
    examples: int | None = None,
    eval_examples: int = 2000,
    per_round: int = 0,
    quorum: int = 0,
    minimum: int = 1,
    deadline: float = 600.0,
    clock: Literal["virtual", "real"] = "virtual",
    broker: str | None = None,
    runtime: str = "onnxruntime",
    threads: int = 1,
    crash: float = 0.0,
    cut: float = 0.0,
    preset: str = "default",
    training: Mapping[str, Any] | None = None,
    aggregation: Mapping[str, Any] | Rule | None = None,
    seed: int | None = None,
    model_seed: int | None = None,
    out: Path | str | None = None,
    on_round: Callable[[RoundRecord], object] | None = None,
    **knobs: Any,
) -> History:
    """Run a fleet of devices that learn together, and return its History.

    Devices and server are the deployed programs; their masks are coded, sent and counted as between real machines. With
    `clock` "virtual" they run in this process on a pretended clock, reproducibly; with "real" they are processes of
    their own that talk over an MQTT broker on this machine.

    Example:
        >>> from sim import simulate
        >>> history = simulate("mlpn", "digits", devices=4, rounds=3, seed=1, on_round=print)      # doctest: +SKIP
        round 1: accuracy 81.7% mean, 80.8% thresholded, 77.5% sampled; loss 0.902, 4 updates of 2.4 kB, 0.9 s
        ...
        >>> history.model.predict(x), history.plot(), history.to_dataframe()                        # doctest: +SKIP

    Model and data:
        model: a torch module, which is exported here for the shapes, the range of values and the classes of `data` (its
            weights are not used: devices make random signs from a seed); a Bundle or the path of one; or the name of a
            network of the zoo ("mlpn" and others ship with the package and need no torch).
        data: (x, y), arrays of inputs [n, ...] as they are stored (bytes for images) and of classes, integers [n];
            floats [n] or [n, outputs] for a model with the loss "mse". Or a Dataset, the path of an .npz file with x
            and y (and x_test and y_test), or a set's name ("fashion-mnist", "digits", or what packages bring).
        test: what measures the model, in the same forms; no device sees it. None: a set with a name has its own; of
            your arrays, `test_share` (0.2) is held out at random, which the summary's "origin" says.
        data_dir: folder with the files of a set with a name.
        split: who holds what: "iid", "c_max:2", "classes:2", "dirichlet:0.3" or "sizes:10" (`sim.partition`).
        examples: per device, 0: all there are. None: 2,000 of a set with a name, all of your own.
        eval_examples: test examples that measure each round, 0: all. The end is measured on all.

    Fleet:
        devices, rounds: how many. per_round: so many of the devices are asked in each round, at random, 0: all.
        quorum: updates that close a round at once, 0: all asked. minimum: updates that are enough after `deadline`, in
            seconds.
        runtime, threads: what trains on each device (`seedmask client runtimes`), with how many threads.
        broker: "HOST:PORT" of a broker to use instead of starting one, with the real clock.
        crash, cut: chances per device and round, 0 .. 1, to die in training or to lose the connection (virtual clock).

    Learning:
        preset: "default", "thrifty" (least bytes) or "paper" (FedPM as published). training, aggregation: values of
            run.toml's tables, which override the preset; every key may also be given as an argument: `epochs=5`.
            aggregation={"rule": "NAME"} takes a server rule that an installed package offers, aggregation=MyRule() one
            of your own as it is (`aggregator.rules`), on the virtual clock.

    What comes of it:
        seed: of split, order and every other chance, 0 .. 2**32 - 1; the same arguments and seed give the same History
            on the virtual clock. None: another one every time, summary["seed"] has it. model_seed: of the frozen
            weights, where the model is exported or of the zoo (1).
        out: a folder for everything (database, devices, summary.json, a plot, model.smk), which is kept; one that an
            earlier simulation made is emptied, any other has to be empty. None: a temporary one.
        on_round: called with the RoundRecord of every round that has ended; `print` will do. It may raise
            StopSimulation, and the History then ends with that round.

    Raises UserError: what was found and what was possible.
    """
    rule = None if aggregation is None or isinstance(aggregation, Mapping) else aggregation
    asked = Parameters(
        model=model,
        data=data,
        test=test,
        test_share=test_share,
        data_dir=None if data_dir is None else Path(data_dir),
        devices=devices,
        rounds=rounds,
        split=split,
        examples=examples,
        eval_examples=eval_examples,
        per_round=per_round,
        quorum=quorum,
        minimum=minimum,
        deadline=deadline,
        virtual=_virtual(clock),
        broker=broker,
        runtime=runtime,
        threads=threads,
        crash=crash,
        cut=cut,
        preset=preset,
        knobs=_knobs(training, None if rule is not None else aggregation, knobs),
        rule=rule,
        seed=seed,
        model_seed=model_seed,
    )
    if on_round is not None and not callable(on_round):
        raise UserError(f"`on_round` is a function of a RoundRecord, found {type(on_round).__name__}")
    if out is not None:
        output.check(Path(out), [path for given in (model, data, test, data_dir) if (path := _path(given))])
    setup = prepare(asked, "simulate")
    for note in setup.notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    with contextlib.ExitStack() as stack:
        if out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seedmask-simulation-")))
        else:
            folder = Path(out)
            output.claim(folder)
        history = run(setup, folder, on_round or (lambda record: None), lambda text: None, Threads)
        if out is not None:
            output.write(folder, history)
    return history


def _virtual(clock: str) -> bool:
    if clock not in ("virtual", "real"):
        raise UserError(f'`clock` is "virtual" or "real", found {clock!r}')
    return clock == "virtual"


def _path(given: object) -> Path | None:
    """Return the path that was given, None where it was something else."""
    return Path(given) if isinstance(given, Path) or (isinstance(given, str) and Path(given).exists()) else None


def _knobs(training: Any, aggregation: Any, others: Mapping[str, Any]) -> dict[str, Any]:
    """Return all knobs in one mapping. Raises UserError for a key of another table, of none, or given twice."""
    known = {name: [field.name for field in dataclasses.fields(kind)] for name, kind in _TABLES.items()}
    found: dict[str, Any] = {}
    for name, table in (("training", training), ("aggregation", aggregation)):
        if table is not None and not isinstance(table, Mapping):
            raise UserError(f"`{name}` is a mapping of its table's keys, found {type(table).__name__}")
        for key, value in (table or {}).items():
            if key not in known[name]:
                raise UserError(f"`{name}` has no key {key!r}; {_nearest(key, known[name])}")
            found[key] = value
    arguments = [name for name in inspect.signature(simulate).parameters if name != "knobs"]
    for key, value in others.items():
        if not any(key in table for table in known.values()):
            names = [*arguments, *known["training"], *known["aggregation"]]
            raise UserError(f"simulate has no argument {key!r}; {_nearest(key, names)}")
        if key in found:
            raise UserError(f"{key!r} is given twice, in a table and as an argument")
        found[key] = value
    return found


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
