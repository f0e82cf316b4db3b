"""TOML into settings: whatever is wrong is named with its place, and with what was possible."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.config import EXAMPLE as RUN_EXAMPLE
from aggregator.config import AggregateSettings, RunConfig, WorkSettings
from aggregator.posterior import Recipe
from aggregator.presets import PRESETS
from edge_client.config import EXAMPLE as EDGE_EXAMPLE
from edge_client.config import EdgeConfig
from edge_client.data import idx
from seedmask.errors import UserError
from seedmask.io.settings import build, load
from seedmask.wire import Work

EDGE = """\
device = "pi-1"
job = "fashion"
bundle = "mlp.bundle"
state_dir = "state"
"""
RUN = """\
job = "fashion"
bundle = "mlp.bundle"
state_dir = "/srv/state"
"""


def edge(folder: Path, text: str) -> EdgeConfig:
    (folder / "edge.toml").write_text(text, encoding="utf-8")
    return load(EdgeConfig, folder / "edge.toml")


def run(folder: Path, text: str) -> RunConfig:
    (folder / "run.toml").write_text(text, encoding="utf-8")
    return load(RunConfig, folder / "run.toml")


def test_the_examples_in_the_help_texts_are_settings(tmp_path: Path) -> None:
    device = edge(tmp_path, EDGE_EXAMPLE)
    assert (device.device, device.data.format, device.broker.port) == ("jetson-01", "npz", 8883)
    job = run(tmp_path, RUN_EXAMPLE)
    assert (job.job, job.rounds.devices, job.work.work().learning_rate) == ("fashion", 4, 100_000)


def test_what_is_not_said_has_its_default(tmp_path: Path) -> None:
    config = edge(tmp_path, EDGE + "[data]")
    assert (config.runtime, config.threads, config.stay, config.broker.host) == ("onnxruntime", 0, False, "127.0.0.1")


def test_paths_are_relative_to_the_file_and_absolute_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = edge(tmp_path, EDGE + '[data]\nformat = "idx"\nimages = "mine/x"\nlabels = "~/y"')
    assert config.bundle == tmp_path / "mlp.bundle"
    found = build(idx.Settings, config.data.keys, "data", config.data.base)
    assert found == idx.Settings(tmp_path / "mine" / "x", Path("~/y").expanduser())
    assert run(tmp_path, RUN).state_dir == Path("/srv/state")
    monkeypatch.chdir(tmp_path)
    assert load(EdgeConfig, Path("edge.toml")).bundle == tmp_path / "mlp.bundle"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_a_file_begins_with(tmp_path: Path, name: str) -> None:
    found = run(tmp_path, f'preset = "{name}"\n' + RUN)
    assert (found.work, found.learning, found.preset) == (PRESETS[name].work, PRESETS[name].learning, name)


def test_what_a_file_says_overrides_its_preset_and_nothing_else(tmp_path: Path) -> None:
    found = run(tmp_path, 'preset = "thrifty"\n' + RUN + "[work]\nkappa = 20\n[learning]\ndownlink = 8")
    assert found.work == replace(PRESETS["thrifty"].work, kappa=20.0)
    assert found.learning == replace(PRESETS["thrifty"].learning, downlink=8)
    exact = run(tmp_path, RUN + '[learning]\ndownlink = "exact"')
    assert exact.learning == replace(PRESETS["default"].learning, downlink="exact")


def test_no_preset_means_the_default_one(tmp_path: Path) -> None:
    found = run(tmp_path, RUN)
    assert (found.work, found.learning) == (PRESETS["default"].work, PRESETS["default"].learning)


def test_the_two_tables_share_no_key_so_that_a_key_names_its_table() -> None:
    assert not {f.name for f in fields(WorkSettings)} & {f.name for f in fields(AggregateSettings)}


def test_every_preset_can_travel_and_the_paper_is_what_its_authors_published() -> None:
    for preset in PRESETS.values():
        assert preset.work.work().epochs == 3
    paper = PRESETS["paper"]
    assert paper.work.work() == Work(codec=2, keep_optimizer=1, straight_through=1)
    assert paper.learning.recipe() == Recipe(init="normal")
    assert PRESETS["thrifty"].work.work() == Work(kappa=24_000, kl=3_000_000, mean_epochs=65535)
    assert PRESETS["default"].learning.recipe() == Recipe(heaviest=10_000, clamp=131)


def test_the_plain_settings_are_those_of_the_wire_and_of_the_recipe() -> None:
    assert WorkSettings().work() == Work()
    assert AggregateSettings().recipe() == Recipe()


def test_settings_become_integers() -> None:
    work = WorkSettings(learning_rate=0.3, momentum=0.9, kl=10, kappa=12.5, rate_decay=0.01, straight_through="theta")
    made = work.work()
    assert (made.learning_rate, made.momentum, made.kl, made.kappa) == (300_000, 900_000, 10_000_000, 12_500)
    assert (made.rate_decay, made.straight_through) == (10_000, 1)
    settings = AggregateSettings(downlink=8, prior=2.5, carry=0.25, clamp=0.02, step=0.5, hysteresis=0.125)
    assert settings.recipe() == Recipe(7, False, 98_304, 250, 1311, 500, False, 8192)


@pytest.mark.parametrize(("said", "thrift"), [("", None), ("thrift = 12\n", 12.0), ("thrift = 7.5\n", 7.5)])
def test_a_device_may_say_how_thrifty_it_is(tmp_path: Path, said: str, thrift: float | None) -> None:
    assert edge(tmp_path, EDGE + said + "[data]").thrift == thrift


def test_a_whole_number_will_do_for_a_number(tmp_path: Path) -> None:
    assert run(tmp_path, RUN + "[rounds]\ndeadline_s = 30").rounds.deadline_s == 30.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (EDGE + "tread = 2\n[data]", r"edge\.toml: unknown key 'tread'; did you mean 'threads'\?"),
        (EDGE + "zzz = 2\n[data]", r"unknown key 'zzz'; known: device, job, bundle"),
        (EDGE, "'data' is missing"),
        ("[data]\n", "'device' is missing"),
        (EDGE + "data = 3", "data is a table, found 3"),
        (EDGE + "[[data]]", "data is a table, found"),
        (EDGE + 'threads = "two"\n[data]', "threads is an integer, found 'two'"),
        (EDGE + "threads = true\n[data]", "threads is an integer, found True"),
        (EDGE + "threads = 2.0\n[data]", "threads is an integer, found 2.0"),
        (EDGE + "stay = 1\n[data]", "stay is true or false, found 1"),
        (EDGE + "runtime = 3\n[data]", "runtime is a text, found 3"),
        (EDGE + "thrift = 0\n[data]", "thrift is 0.001 .* 1000 bits, found 0"),
        (EDGE + "threads = -1\n[data]", "threads is 0 .* 1024, found -1"),
        (EDGE.replace("pi-1", "Pi 1") + "[data]", "a name is a-z, 0-9 and '-'.*'Pi 1'"),
        (EDGE.replace("fashion", "a/b") + "[data]", "a name is a-z, 0-9 and '-'.*'a/b'"),
        ("device = ", r"edge\.toml is not TOML: "),
        ('device = "a"\ndevice = "b"', "is not TOML: "),
    ],
)
def test_a_wrong_device_file_says_what_to_mend(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        edge(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[rounds]\ntotal = 0", r"run\.toml: rounds: total is 1 \.\. 65535, found 0"),
        ("[rounds]\ndevices = 70000", r"devices is 1 \.\. 65535"),
        ("[rounds]\nquorum = 2\nminimum = 3", r"minimum \(3\) cannot be above quorum \(2\)"),
        ("[rounds]\nper_round = 2\nminimum = 3", r"cannot be above per_round \(2\)"),
        ("[rounds]\nper_round = 2\nquorum = 3", r"cannot be above per_round \(2\)"),
        ("[rounds]\ndeadline_s = 0.1", "deadline_s is 1 "),
        ("[rounds]\ndeadline_s = nan", "deadline_s is 1 "),
        ("[work]\nlearning_rate = 0.0", "learning_rate is 0.000001"),
        ("[work]\nlearning_rate = inf", "learning_rate is 0.000001"),
        ("[work]\nepochs = 0", "epochs is 1"),
        ('[work]\ncodec = "zip"', "codec 'zip' is unknown; there are packed, rans, hmrc, crn"),
        ('[work]\noptimizer = "lion"', "optimizer 'lion' is unknown; there are adam, sgd"),
        ("[work]\nmomentum = 1.0", "momentum is 0 .. 0.999999, found 1.0"),
        ("[work]\nkappa = 30", r"kappa \(30\) cannot be above kappa_max \(24\)"),
        ("[work]\nmasks = 256", "masks is 1 .. 255, found 256"),
        ("[work]\nstraitified = true", "work: unknown key 'straitified'; did you mean 'stratified'?"),
        ("[learning]\ndownlink = 2.5", "downlink is an integer or a text, found 2.5"),
        ("[learning]\ndownlink = true", "downlink is an integer or a text, found True"),
        ("[learning]\ndownlink = 1", "downlink is 2 .. 65535, found 1"),
        ('[learning]\ndownlink = "all"', "found 'all'"),
        ('[learning]\nweighting = "size"', "weighting 'size' is unknown; there are equal, samples"),
        ("[learning]\nprior = 0.5", "prior is 1 .. 1000, found 0.5"),
        ("[learning]\nclamp = 0.5", "clamp is "),
        ('[learning]\ndownlink = "exact"\nhysteresis = 0.1', "hysteresis needs levels"),
        ("[learning]\ncontrol_variate = true", 'control_variate needs work.codec = "crn", found "hmrc"'),
        ('[work]\ncodec = "crn"\n[learning]\ncontrol_variate = true\ncarry = 0.1', "excludes prior and carry"),
        ("learning = 3", "learning is a table, found 3"),
        ('preset = "thirfty"', r"preset 'thirfty' is unknown; did you mean 'thrifty'\?"),
        ("preset = 3", "preset 3 is unknown; there are default, thrifty, paper"),
    ],
)
def test_a_wrong_job_file_says_what_to_mend(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(tmp_path, RUN + text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent\.toml: No such file"):
        load(RunConfig, tmp_path / "absent.toml")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        load(RunConfig, tmp_path)
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"run\.toml is not TOML"):
        load(RunConfig, tmp_path / "run.toml")


KEYS = st.sampled_from(["device", "job", "bundle", "state_dir", "data", "threads", "stay", "broker", "x"])
VALUES = st.sampled_from(["1", "-1", "true", '"a"', '""', "1.5", "[]", "{}", "1979-05-27", "{host = 1}", "nan"])


@given(st.dictionaries(KEYS, VALUES, max_size=9))
def test_any_settings_are_taken_or_refused_as_the_users_error(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]
) -> None:
    text = "".join(f"{key} = {value}\n" for key, value in values.items())
    with contextlib.suppress(UserError):
        edge(tmp_path_factory.getbasetemp(), text)
