"""TOML into settings: whatever is wrong is named with its place, and with what was possible."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.config import EXAMPLE as RUN_EXAMPLE
from aggregator.config import RunConfig
from edge_client.config import EXAMPLE as EDGE_EXAMPLE
from edge_client.config import EdgeConfig
from seedmask.errors import UserError
from seedmask.io.settings import load

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
    config = edge(tmp_path, EDGE + '[data]\npath = "mine/train.npz"\nimages = "~/x"')
    assert config.bundle == tmp_path / "mlp.bundle"
    assert config.data.path == tmp_path / "mine" / "train.npz"
    assert config.data.images == Path("~/x").expanduser()
    assert run(tmp_path, RUN).state_dir == Path("/srv/state")
    monkeypatch.chdir(tmp_path)
    assert load(EdgeConfig, Path("edge.toml")).bundle == tmp_path / "mlp.bundle"


def test_a_whole_number_will_do_for_a_number(tmp_path: Path) -> None:
    assert run(tmp_path, RUN + "[rounds]\ndeadline_s = 30").rounds.deadline_s == 30.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (EDGE + "tread = 2\n[data]", r"edge\.toml: unknown key 'tread'; did you mean 'threads'\?"),
        (EDGE + "zzz = 2\n[data]", r"unknown key 'zzz'; known: device, job, bundle"),
        (EDGE + '[data]\nfromat = "npz"', r"edge\.toml: data: unknown key 'fromat'; did you mean 'format'\?"),
        (EDGE, "'data' is missing"),
        ("[data]\n", "'device' is missing"),
        (EDGE + "data = 3", "data is a table, found 3"),
        (EDGE + "[[data]]", "data is a table, found"),
        (EDGE + 'threads = "two"\n[data]', "threads is an integer, found 'two'"),
        (EDGE + "threads = true\n[data]", "threads is an integer, found True"),
        (EDGE + "threads = 2.0\n[data]", "threads is an integer, found 2.0"),
        (EDGE + "stay = 1\n[data]", "stay is true or false, found 1"),
        (EDGE + "runtime = 3\n[data]", "runtime is a text, found 3"),
        (EDGE + "threads = -1\n[data]", "threads is 0 .* 1024, found -1"),
        (EDGE + "[data]\npath = 3", "path is a path, found 3"),
        (EDGE + '[data]\npath = ""', "path is a path, found ''"),
        (EDGE + '[data]\npath = "a\\u0000b"', "path is a path, found"),
        (EDGE + '[data]\npath = "~nobody-of-that-name/x"', "path: .*home"),
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
        ('[work]\ncodec = "zip"', "codec 'zip' is unknown; there are packed, rans"),
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
