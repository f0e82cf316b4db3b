"""`seedmask compare`: codecs of the baselines, bytes as they are counted, runs that can be interrupted, the report."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capabilities import requires
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_client.data import Dataset
from seedmask import topics
from seedmask.errors import UserError
from seedmask.shared import Shared
from sim.broker import packet_bytes
from sim.compare import codecs, grid, report
from sim.compare.grid import Progress
from sim.compare.schemes import Dense, Local, Sparse

pytestmark = pytest.mark.sim

SHARED = Shared(7, 3, "compare", "device-000")
CODECS: dict[str, Callable[[int], codecs.Codec]] = {
    "fp32": lambda d: codecs.Fp32(),
    "sign": lambda d: codecs.Sign(),
    "scaled_sign": lambda d: codecs.ScaledSign((d // 3, d - d // 3)) if d > 2 else codecs.ScaledSign((d,)),
    "qsgd": lambda d: codecs.Qsgd(4, 64),
    "topk": lambda d: codecs.TopK(0.1),
    "drive": lambda d: codecs.Drive(),
}
VECTORS = hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-100, 100, width=32, allow_subnormal=False))


def chance(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def changes(d: int, seed: int = 2) -> np.ndarray:
    """A vector like a round's change of weights: most entries small, some large."""
    rng = chance(seed)
    return (rng.standard_normal(d) * rng.random(d) ** 3).astype(np.float32)


# --- codecs ---


@pytest.mark.parametrize("name", CODECS)
@settings(deadline=None, max_examples=40)
@given(x=VECTORS)
def test_every_codec_gives_back_a_vector_of_that_length(name: str, x: np.ndarray) -> None:
    codec = CODECS[name](x.size)
    out = codec.decode(codec.encode(x, SHARED, chance()), x.size, SHARED)
    assert (out.dtype, out.shape) == (np.float32, x.shape)
    assert np.isfinite(out).all()


@given(x=VECTORS)
def test_fp32_loses_nothing(x: np.ndarray) -> None:
    assert np.array_equal(codecs.Fp32().decode(codecs.Fp32().encode(x, SHARED, chance()), x.size, SHARED), x)


@given(x=VECTORS)
def test_what_top_k_keeps_is_exact_largest_and_in_its_place(x: np.ndarray) -> None:
    codec = codecs.TopK(0.1)
    out = codec.decode(codec.encode(x, SHARED, chance()), x.size, SHARED)
    kept = out != 0
    assert np.array_equal(out[kept], x[kept])
    assert kept.sum() <= max(1, round(0.1 * x.size))
    if not kept.all() and kept.any():
        assert np.abs(x[~kept]).max() <= np.abs(x[kept]).min()


@given(where=st.sets(st.integers(0, 5000), max_size=200), d=st.just(5001))
def test_any_set_of_positions_comes_back(where: set[int], d: int) -> None:
    x = np.zeros(d, np.float32)
    x[sorted(where)] = np.arange(1, len(where) + 1)
    assert np.array_equal(codecs.sparse_vector(codecs.sparse_bytes(x, np.flatnonzero(x)), d), x)


def test_signs_are_those_of_the_vector_and_a_zero_goes_either_way() -> None:
    x = changes(1000)
    assert np.array_equal(codecs.Sign().decode(codecs.Sign().encode(x, SHARED, chance()), 1000, SHARED), np.sign(x))
    zeros = codecs.Sign().decode(codecs.Sign().encode(np.zeros(1000, np.float32), SHARED, chance()), 1000, SHARED)
    assert 400 < (zeros > 0).sum() < 600


def test_scaled_signs_have_the_mean_of_each_tensor() -> None:
    x, codec = changes(90), codecs.ScaledSign((30, 60))
    out = codec.decode(codec.encode(x, SHARED, chance()), 90, SHARED)
    assert np.allclose(np.abs(out[:30]), np.abs(x[:30]).mean())
    assert np.allclose(np.abs(out[30:]), np.abs(x[30:]).mean())


def test_qsgd_is_unbiased() -> None:
    x, codec, rng = changes(256), codecs.Qsgd(4, 64), chance()
    outs = np.array([codec.decode(codec.encode(x, SHARED, rng), x.size, SHARED) for _ in range(1000)])
    by_chance = math.sqrt(float(outs.var(0).sum()) / len(outs))
    assert np.linalg.norm(outs.mean(0) - x) < 1.5 * by_chance
    assert by_chance < 0.1 * np.linalg.norm(x)


def test_drive_projects_on_the_vector_exactly_and_is_unbiased_over_rotations() -> None:
    x, codec = changes(512 + 64), codecs.Drive()
    outs = []
    for number in range(800):
        shared = Shared(7, number, "compare", "device-000")
        outs.append(codec.decode(codec.encode(x, shared, chance()), x.size, shared))
    assert math.isclose(float(outs[0] @ x), float(x @ x), rel_tol=1e-4)
    mean = np.mean(outs, 0)
    assert np.linalg.norm(mean - x) < 0.1 * np.linalg.norm(x)
    assert np.linalg.norm(outs[0] - x) > 0.5 * np.linalg.norm(x)  # so it was not one lucky rotation


def test_hadamard_is_its_own_inverse_and_keeps_lengths() -> None:
    x = changes(1024)
    assert np.allclose(codecs.hadamard(codecs.hadamard(x)), x, atol=1e-5)
    assert math.isclose(float(np.linalg.norm(codecs.hadamard(x))), float(np.linalg.norm(x)), rel_tol=1e-5)
    assert np.allclose(codecs.hadamard(np.eye(4, dtype=np.float32)[1]), [0.5, -0.5, 0.5, -0.5])


@pytest.mark.parametrize(("name", "least", "most"), [("sign", 1, 1), ("drive", 1, 1.1), ("qsgd", 0.5, 2)])
def test_bits_are_what_the_method_promises(name: str, least: float, most: float) -> None:
    d = 20_000
    bits = 8 * len(CODECS[name](d).encode(changes(d), SHARED, chance())) / d
    assert least <= bits <= most


def test_top_k_spends_on_positions_close_to_their_entropy() -> None:
    d, keep = 100_000, 0.01
    payload = codecs.TopK(keep).encode(changes(d), SHARED, chance())
    entropy = -(keep * math.log2(keep) + (1 - keep) * math.log2(1 - keep)) * d / 8
    assert len(payload) - 4 * d * keep < 1.06 * entropy + 16


# --- what servers make of it ---


def scheme(up: codecs.Codec, down: codecs.Codec | None, devices: int = 4, **more: Any) -> Dense:
    shared = lambda number, device: Shared(7, number, "compare", device)  # noqa: E731
    return Dense(np.zeros(300, np.float32), [10] * devices, up, down, shared, chance(), **more)


def towards(goal: np.ndarray, by: float = 0.1) -> Callable[[int, int, np.ndarray], Local]:
    return lambda number, device, start: Local(start + np.float32(by) * (goal - start), 1.0)


def test_fedavg_is_the_mean_by_samples() -> None:
    one = Dense(np.zeros(2, np.float32), [1, 3], codecs.Fp32(), None, lambda n, d: SHARED, chance())
    one.round(1, lambda number, device, start: Local(np.full(2, [4.0, 8.0][device], np.float32), 1.0))
    assert np.allclose(one.weights, 7)


def test_before_the_first_round_nothing_is_sent_and_then_what_the_devices_train_from() -> None:
    fedavg = scheme(codecs.Fp32(), None)
    first = fedavg.round(1, towards(changes(300)))
    assert (first.down, len(first.up)) == (b"", 4)
    weights = fedavg.weights
    second = fedavg.round(2, towards(changes(300)))
    assert np.array_equal(codecs.Fp32().decode(second.down, 300, SHARED), weights)


def test_a_majority_vote_moves_every_weight_by_the_server_rate() -> None:
    signs = scheme(codecs.Sign(), codecs.Sign(), 3, vote_rate=0.25)

    def train(number: int, device: int, start: np.ndarray) -> Local:
        return Local(start + np.float32(1 if device else -5), 1.0)  # two small up, one large down

    sent = signs.round(1, train)
    assert np.array_equal(signs.weights, np.full(300, 0.25, np.float32))
    assert {len(payload) for payload in sent.up} == {math.ceil(300 / 8)}
    assert len(signs.round(2, train).down) == math.ceil(300 / 8)


@pytest.mark.parametrize(
    ("up", "down"),
    [(codecs.ScaledSign((300,)), codecs.ScaledSign((300,))), (codecs.TopK(0.05), Sparse())],
    ids=["ef-signsgd", "topk"],
)
def test_error_feedback_sends_in_the_end_what_it_held_back(up: codecs.Codec, down: codecs.Codec) -> None:
    goal = np.linspace(0.1, 3, 300).astype(np.float32)
    more = {"feedback": True, "down_feedback": isinstance(down, codecs.ScaledSign)}
    with_it, without = scheme(up, down, **more), scheme(up, down)
    total = np.zeros(300, np.float64)

    def constant(number: int, device: int, start: np.ndarray) -> Local:
        return Local(start + np.float32(0.01) * goal, 1.0)

    for number in range(1, 401):
        with_it.round(number, constant)
        without.round(number, constant)
        total += 0.01 * goal
    lost = np.abs(with_it.weights - total)
    assert np.linalg.norm(lost) < 0.1 * np.linalg.norm(total)
    assert np.linalg.norm(without.weights - total) > 2 * np.linalg.norm(lost)


# --- whole runs ---


def tiny(**more: Any) -> dict[str, Any]:
    return {
        "dataset": "digits",
        "devices": 3,
        "images": 40,
        "epochs": 1,
        "batch": 16,
        "eval_images": 60,
        "targets": [10, 20],
        "schemes": {
            "frugal": {"kind": "masks", "preset": "default", "formula": True},
            "fedavg": {"optimizer": "adam", "candidates": [{"rate": 0.001}, {"rate": 0.01}]},
            "fedmask": {},
        },
        "runs": [
            {
                "schemes": ["frugal", "fedavg", "fedmask"],
                "models": ["mlp"],
                "splits": ["iid"],
                "seeds": [1],
                "rounds": 2,
            }
        ],
        **more,
    }


def needs_torch() -> None:
    requires("torch", "onnx", "sim")


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    """Every scheme of `tiny`, run in this process."""
    needs_torch()
    from sim import datasets
    from sim.compare.harness import run

    images = datasets.load("digits", None)
    found = {}
    for declaration in grid.build("tiny", tiny(), "here").runs():
        closed: list[int] = []
        found[declaration.scheme] = run(declaration, images, "reference", 1, closed.append)
        assert closed == [1, 2]
    return found


@pytest.mark.export
def test_a_run_has_a_row_per_round_with_everything_in_it(results: dict[str, dict[str, Any]]) -> None:
    for result in results.values():
        assert [row["round"] for row in result["rows"]] == [1, 2]
        for row in result["rows"]:
            assert all(0 <= row[f"accuracy_{measure}"] <= 1 for measure in report.MEASURES)
        for key in (report.UP, report.DOWN):
            first, second = (row[key] for row in result["rows"])
            assert 0 < first < second
    assert 1.9 < results["frugal"]["rows"][1][report.FORMULA] < 2.01
    dense = results["fedavg"]["rows"][1]
    assert dense["accuracy_sampled"] == dense["accuracy_thresholded"] == dense["accuracy_mean"]


@pytest.mark.export
def test_bits_are_those_of_the_packets_that_carry_the_bytes(results: dict[str, dict[str, Any]]) -> None:
    first, second = results["fedavg"]["rows"]
    # fp32 up in both rounds, down in the second only, and frames, chunks and topics around it.
    assert 32 < first[report.UP] < 32.1
    assert second[report.UP] == pytest.approx(2 * first[report.UP], rel=1e-6)
    assert first[report.DOWN] < 0.01
    assert 32 < second[report.DOWN] < 32.1
    assert results["fedmask"]["rows"][0][report.UP] == pytest.approx(1, abs=0.02)


@pytest.mark.export
def test_the_baselines_meter_and_the_fleets_broker_count_alike() -> None:
    needs_torch()
    from seedmask.chunks import split
    from seedmask.wire import Update, encode
    from sim.compare.harness import JOB, Meter

    meter = Meter(bytes(32), 5)
    payload = bytes(range(256)) * 500
    update = Update(1, bytes(16), 3, 0, 0, 127, (payload,))
    topic = topics.update(JOB, "device-001")
    published = sum(packet_bytes(topic, encode(chunk)) for chunk in split(encode(update)))
    assert meter.up(1, "device-001", 3, payload) == published
    assert meter.down(2, payload) - meter.down(2, b"") == sum(
        packet_bytes(topics.theta(JOB, 2, chunk.index), encode(chunk)) for chunk in split(payload)
    )


@pytest.mark.export
def test_masks_here_are_those_of_a_fleet_with_its_own_processes(
    results: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    from aggregator.config import RunConfig
    from aggregator.presets import settings_of
    from aggregator.settings import RoundsConfig
    from sim import datasets
    from sim.compare.harness import JOB, world
    from sim.evaluate import score
    from sim.fleet import Faults, Fleet
    from sim.pool import Pool

    declaration = next(run for run in grid.build("tiny", tiny(), "here").runs() if run.scheme == "frugal")
    home = world(declaration, datasets.load("digits", None))
    work, learning = settings_of("default", {"epochs": 1}, "here")
    rounds = RoundsConfig(total=2, devices=3, deadline_s=4_000_000)
    config = RunConfig(JOB, tmp_path / "b", tmp_path / "state", rounds, work, learning)
    thetas = []
    with Pool(home.bundle, home.parts, "reference", 1, 2) as pool:
        fleet = Fleet(config, tmp_path / "d", home.bundle, home.parts, pool, "reference", 1, Faults())
        fleet.run(lambda record, theta, seconds: thetas.append(theta))
    up, _ = fleet.traffic()
    rows = results["frugal"]["rows"]
    assert rows[1][report.UP] == pytest.approx(8 * up / 3 / home.bundle.spec.d, rel=1e-6)
    from edge_client.runtimes import open_runtime

    runtime = open_runtime("reference", home.bundle, 1)
    for row, theta in zip(rows, thetas, strict=True):
        again = score(runtime, home.bundle.spec, home.test, theta, chance())
        assert (row["accuracy_mean"], row["accuracy_thresholded"]) == (again.mean, again.thresholded)


def _interrupted(values: dict[str, Any], out: Path, ready: Any) -> None:
    def say(at: Progress) -> None:
        if at.runs_done:
            ready.set()

    grid.work(grid.build("tiny", values, "here").runs(), out, None, "reference", 1, 1, say)


@pytest.mark.export
@pytest.mark.slow
def test_a_grid_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    results: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    runs = grid.build("tiny", tiny(), "here").runs()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_interrupted, args=(tiny(), tmp_path, ready))
    process.start()
    assert ready.wait(240)
    process.kill()
    process.join()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert 1 <= len(kept) < len(runs)
    seen: list[Progress] = []
    grid.work(runs, tmp_path, None, "reference", 1, 2, seen.append)
    assert (seen[0].runs_done, seen[-1].runs_done) == (len(kept), 3)
    assert all((tmp_path / "runs" / name).stat().st_mtime_ns == at for name, at in kept.items())
    again = report.summary([grid.stored(tmp_path, run) or {} for run in runs])
    assert again == report.summary([results[run.scheme] for run in runs])


@pytest.mark.export
def test_a_run_that_fails_says_which_and_why_and_leaves_no_file(tmp_path: Path) -> None:
    needs_torch()
    bad = tiny(dataset="mnist")
    with pytest.raises(grid.FailedError, match=r"frugal on mlp, iid, seed 1: UserError: mnist is not downloaded"):
        grid.work(grid.build("tiny", bad, "here").runs(), tmp_path, None, "reference", 1, 1, lambda at: None)
    assert not list(tmp_path.glob("runs/*"))


def command(*arguments: str) -> int:
    from sim.compare.cli import COMMAND

    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    return COMMAND.run(parser.parse_args(arguments))


@pytest.mark.export
def test_the_command_does_nothing_twice_and_says_in_plain_lines_where_it_stands(
    results: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
        dataset = "digits"
        devices = 3
        images = 40
        epochs = 1
        batch = 16
        eval_images = 60
        targets = [10, 20]
        schemes.frugal = { kind = "masks", preset = "default", formula = true }
        schemes.fedavg = { optimizer = "adam", candidates = [{ rate = 0.001 }, { rate = 0.01 }] }
        runs = [{ schemes = ["frugal", "fedavg"], models = ["mlp"], splits = ["iid"], seeds = [1], rounds = 2 }]
    """
    path, out = tmp_path / "mine.toml", tmp_path / "out"
    path.write_text("\n".join(line.strip() for line in text.splitlines()))
    runs = grid.load(str(path)).runs()
    assert [run.scheme for run in runs] == ["frugal", "fedavg"]
    for run in runs:
        grid.result_path(out, run).parent.mkdir(parents=True, exist_ok=True)
        grid.result_path(out, run).write_text(json.dumps(results[run.scheme]))
    assert command("--grid", str(path), "--out", str(out), "--json", "-") == 0
    said = capsys.readouterr()
    assert said.err.startswith("2 of 2 runs, 4 of 4 rounds; about 0:00 left")
    assert {entry["scheme"] for entry in json.loads(said.out)["reached"]} == {"frugal", "fedavg"}
    assert len(json.loads((out / "summary.json").read_text())) == 4
    assert "## mlp on digits, iid" in (out / "report.md").read_text()
    assert command("--grid", str(path), "--out", str(out), "--list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["state", "done", "done"]


def test_an_argument_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--workers is at least 0, found -1"):
        command("--workers", "-1", "--out", str(tmp_path))
    path, cell = (
        tmp_path / "g.toml",
        'schemes = ["fedavg"], models = ["mlp"], splits = ["iid"], seeds = [1], rounds = 2',
    )
    path.write_text(f"schemes.fedavg = {{}}\nruns = [{{ {cell} }}]")
    with pytest.raises(UserError, match=r"has no \[\[tuning\]\]"):
        command("--grid", str(path), "--tune", "--out", str(tmp_path))


# --- grids ---


def test_the_packaged_grid_is_well_formed_and_has_what_the_report_needs() -> None:
    found = grid.load("quick")
    runs = found.runs()
    assert {run.split for run in runs} == {"iid", "classes:2"}
    assert {"default", "thrifty", "paper", "fedavg", "signsgd", "ef-signsgd", "qsgd", "topk", "drive", "fedmask"} == {
        run.scheme for run in runs
    }
    assert all(run.validation for run in found.tuning_runs())
    assert len({run.digest() for run in [*runs, *found.tuning_runs()]}) == len(runs) + len(found.tuning_runs())


def test_a_digest_names_everything_that_determines_a_run() -> None:
    base = grid.build("tiny", tiny(), "here").runs()
    for change in ({"devices": 4}, {"images": 41}, {"epochs": 2}, {"batch": 17}, {"eval_images": 61}):
        other = grid.build("tiny", tiny(**change), "here").runs()
        assert not {run.digest() for run in base} & {run.digest() for run in other}
    assert base == grid.build("tiny", tiny(targets=[30]), "here").runs()


def test_tuning_tries_every_candidate_and_the_best_is_what_runs() -> None:
    cell = {"schemes": ["fedavg", "fedmask"], "models": ["mlp"], "splits": ["iid"], "seeds": [1], "rounds": 3}
    found = grid.build("tiny", tiny(tuning=[cell]), "here")
    trials = found.tuning_runs()
    assert [dict(run.settings)["rate"] for run in trials] == [0.001, 0.01]
    results = [
        {
            "declaration": {"scheme": "fedavg", "model": "mlp", "split": "iid", "settings": dict(run.settings)},
            "rows": [{"accuracy_mean": mean} for mean in means],
        }
        for run, means in zip(trials, ([0.9, 0.9, 0.1], [0.1, 0.1, 0.2]), strict=True)
    ]
    tuned = grid.best(found, results)
    assert tuned == {"fedavg": {"mlp iid": {"rate": 0.01}}}
    assert grid.toml(tuned) == '[tuned.fedavg]\n"mlp iid" = { rate = 0.01 }\n'
    fedavg = next(run for run in grid.build("tiny", tiny(tuned=tuned), "here").runs() if run.scheme == "fedavg")
    assert dict(fedavg.settings) == {"optimizer": "adam", "rate": 0.01}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"device": 3}, "unknown key 'device'; did you mean 'devices'"),
        ({"devices": 0}, "devices is at least 1, found 0"),
        ({"dataset": "imagenet"}, "dataset 'imagenet' is unknown"),
        ({"runs": []}, r"at least one \[\[runs\]\]"),
        ({"runs": [{"schemes": ["x"], "models": ["mlp"], "splits": ["iid"], "seeds": [1], "rounds": 1}]}, "scheme 'x'"),
        ({"runs": [{"schemes": ["fedavg"]}]}, "'models' is missing"),
        ({"schemes": {"a": {}}}, "kind 'a' is unknown; there are masks, fedavg"),
        ({"schemes": {"fedavg": {"keep": 0.1}}}, "unknown key 'keep'; known: optimizer, rate"),
        ({"targets": [800]}, "targets are percentages"),
    ],
)
def test_a_grid_with_a_mistake_names_it(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        grid.build("tiny", tiny(**change), "here")


def test_a_grid_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(UserError, match=r"no grid 'quik' .*packaged are conv, conv-1-epoch, learning, quick;"):
        grid.load("quik")


# --- report ---


def canned() -> list[dict[str, Any]]:
    def result(scheme: str, seed: int, accuracies: list[float], up: float, formula: float | None) -> dict[str, Any]:
        head = {"scheme": scheme, "dataset": "digits", "model": "mlp", "split": "classes:2", "seed": seed}
        rows = []
        for number, accuracy in enumerate(accuracies, 1):
            row = {f"accuracy_{measure}": accuracy for measure in report.MEASURES}
            row |= {"round": number, report.UP: up * number, report.DOWN: 10 * up * number}
            rows.append(row if formula is None else {**row, report.FORMULA: formula * number})
        return {"declaration": head, "parameters": 1000, "rows": rows}

    return [
        result("frugal", 1, [0.5, 0.81, 0.85], 0.01, 1.0),
        result("frugal", 2, [0.5, 0.79, 0.82], 0.01, 1.0),
        result("fedavg", 1, [0.6, 0.7, 0.79], 32, None),
    ]


def test_the_report_says_what_it_took_to_reach_a_target() -> None:
    rows = report.summary(canned())
    assert len(rows) == 9
    place = ("digits", "mlp", "classes:2")
    found = report.series(rows, place)
    assert report.reached(found["frugal"], 80, "mean", "up").values == (0.02, 0.03)
    assert report.reached(found["frugal"], 80, "mean", "up").text() == "0.025 [0.02, 0.03]"
    assert report.reached(found["frugal"], 84, "mean", "rounds").text() == "3 (1 of 2)"
    assert report.reached(found["fedavg"], 80, "mean", "both").text() == "-"
    text = report.markdown(rows, [80, 84], "mean", {place: "p.png"})
    assert "| frugal | 0.025 [0.02, 0.03] | 0.03 (1 of 2) |" in text
    assert "| frugal, by its formula | 2.5 [2, 3] | 3 (1 of 2) |" in text
    assert "| fedavg | - | - |" in text
    assert "![accuracy against rounds and bits](p.png)" in text
    entry = next(e for e in report.table(rows, [84], "mean") if e["scheme"] == "frugal")
    assert (entry["uplink_bits"], entry["rounds"], entry["seeds"]) == ([0.03], [3.0], 2)


def test_everything_is_written_and_the_summary_is_a_list_of_rows(tmp_path: Path) -> None:
    requires("sim")
    written = report.write(tmp_path, canned(), [80], "mean")
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert {"scheme", "model", "split", "seed", "round", "accuracy_mean", report.UP, report.DOWN} <= rows[0].keys()
    assert [path.name for path in written] == ["summary.json", "report.md", "digits-mlp-classes-2.png"]
    assert written[2].read_bytes().startswith(b"\x89PNG")


def test_dense_training_learns_and_is_the_same_every_time() -> None:
    needs_torch()
    from export.trace import trace
    from export.zoo import ZOO
    from sim import datasets
    from sim.compare.dense import DenseTraining

    train: Dataset = datasets.load("digits", None).train
    entry = ZOO["mlp"]
    net = DenseTraining(trace(entry.factory(), "mlp", 1, entry.input, (0, 255), entry.classes, "kaiming"), 1)
    start = net.start(5)
    assert np.array_equal(start, net.start(5))
    assert start[:200_704].std() == pytest.approx(math.sqrt(2 / 784), rel=0.02)
    more: dict[str, Any] = {"epochs": 2, "batch": 64}
    for optimizer, rate in (("adam", 0.001), ("sgd", 0.05)):
        one, loss = net.train(start, train.x, train.y, **more, rate=rate, optimizer=optimizer, rng=chance())
        two, _ = net.train(start, train.x, train.y, **more, rate=rate, optimizer=optimizer, rng=chance())
        assert np.array_equal(one, two)
        assert loss < 1.5
        assert net.accuracy(one, train.x, train.y) > 0.8
    with pytest.raises(ValueError, match="optimizer is one of adam, sgd, found 'lion'"):
        net.train(start, train.x, train.y, **more, rate=0.1, optimizer="lion", rng=chance())
