"""TOML into settings: whatever is wrong is named with its place, and with what was possible."""

from __future__ import annotations

import argparse
import contextlib
import json
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.config import EXAMPLE as RUN_EXAMPLE
from aggregator.config import RunConfig
from aggregator.presets import PRESETS, settings_of
from aggregator.settings import AggregationConfig, RoundsConfig
from edge_client.config import EXAMPLE as EDGE_EXAMPLE
from edge_client.config import EdgeConfig
from edge_client.data import idx
from seedmask import cli
from seedmask.errors import UserError
from seedmask.io import explain
from seedmask.io.schema import schema
from seedmask.io.settings import add_options, build, load, tomllib
from seedmask.knobs import REQUIRED, Knob, changes, knob, knobs, settle
from seedmask.mask import ONE
from seedmask.training import TrainingConfig

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
    assert (job.job, job.rounds.devices, job.training) == ("fashion", 4, PRESETS["default"].training)


def test_what_the_example_has_as_comments_are_settings_of_the_default_preset(tmp_path: Path) -> None:
    said = run(tmp_path, RUN_EXAMPLE.replace("\n# ", "\n"))
    assert said == run(tmp_path, RUN_EXAMPLE)
    assert edge(tmp_path, EDGE_EXAMPLE.replace("\n# ", "\n")).bits_per_index == 12


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
    found, preset = run(tmp_path, f'preset = "{name}"\n' + RUN), PRESETS[name]
    assert (found.training, found.aggregation, found.preset) == (preset.training, preset.aggregation, name)


def test_what_a_file_says_overrides_its_preset_and_nothing_else(tmp_path: Path) -> None:
    found = run(tmp_path, 'preset = "thrifty"\n' + RUN + "[training]\nkappa = 20\n[aggregation]\ndownlink = 8")
    assert found.training == replace(PRESETS["thrifty"].training, kappa=20.0)
    assert found.aggregation == replace(PRESETS["thrifty"].aggregation, downlink=8)
    exact = run(tmp_path, RUN + '[aggregation]\ndownlink = "exact"')
    assert exact.aggregation == replace(PRESETS["default"].aggregation, downlink="exact")


def test_no_preset_means_the_default_one(tmp_path: Path) -> None:
    found = run(tmp_path, RUN)
    assert (found.training, found.aggregation) == (PRESETS["default"].training, PRESETS["default"].aggregation)


def test_the_two_tables_share_no_key_so_that_a_key_names_its_table() -> None:
    assert not {f.name for f in fields(TrainingConfig)} & {f.name for f in fields(AggregationConfig)}


def test_the_paper_is_what_its_authors_published() -> None:
    paper = PRESETS["paper"]
    assert paper.training == TrainingConfig(codec="rans", keep_optimizer=True, straight_through="theta")
    assert paper.aggregation == AggregationConfig(init="normal")
    assert PRESETS["thrifty"].training == TrainingConfig(kappa=24, kl=3, mean_epochs=65535)
    assert PRESETS["default"].aggregation == AggregationConfig(weighting="samples", clamp=0.002)


# --- one value in two forms: a number of people's, an integer of the wire's ---

TABLES = (RoundsConfig, TrainingConfig, AggregationConfig)
KNOBS = [pytest.param(kind, one, id=f"{kind.__name__}.{one.name}") for kind in TABLES for one in knobs(kind)]
CARRIED = [one for one in knobs(TrainingConfig) if not one.choices]


@pytest.mark.parametrize(("kind", "one"), KNOBS)
def test_a_knob_says_what_it_means_and_its_default_presets_and_ends_are_on_its_grid(kind: type, one: Knob) -> None:
    assert one.meaning
    assert len(one.meaning) <= 88  # a line of the example and of the help
    assert set(one.presets) <= set(PRESETS)
    for value in (one.default, *one.presets.values()):
        assert one.settled(one.settled(value)) == one.settled(value)
    assert one.settled(one.default) == one.default
    if float in one.kinds:
        for end in (one.least, one.most):
            assert one.settled(end) == end
            with pytest.raises(ValueError, match=f"{one.name} is "):
                one.settled(end + (1 if end == one.most else -1) / one.scale)


@given(st.sampled_from(CARRIED), st.data())
def test_every_integer_of_the_wire_is_one_value_and_comes_back(one: Knob, data: st.DataObject) -> None:
    number = data.draw(st.integers(*one.span))
    value = one.value(number)
    assert one.number(value) == number
    assert one.settled(value) == value
    assert one.settled(json.loads(one.said(value))) == value


def test_the_integers_of_a_text_are_its_place_or_the_codecs_id_and_a_codec_without_a_name_stays_itself() -> None:
    by_name = {one.name: one for one in knobs(TrainingConfig)}
    assert [by_name["optimizer"].number(text) for text in ("adam", "sgd")] == [0, 1]
    codec = by_name["codec"]
    assert [codec.value(number) for number in (1, 2, 3, 200)] == ["packed", "rans", "hmrc", "#200"]
    assert TrainingConfig(codec="#200").codec_id == 200
    for text in ("#3", "#256", "#", "#-1", "#0200", "# 9"):
        with pytest.raises(ValueError, match="is unknown; there are packed"):
            TrainingConfig(codec=text)


def test_settings_are_put_on_the_grid_so_that_equal_ones_are_equal() -> None:
    third = TrainingConfig(learning_rate=1 / 3, kl=3, kappa=12.3456)
    assert (third.learning_rate, third.kl, third.kappa) == (0.333333, 3.0, 12.346)
    assert third == TrainingConfig(learning_rate=0.3333334, kl=2.99999999, kappa=12.346)
    assert type(third.kl) is float


def test_the_aggregator_computes_in_integers() -> None:
    made = AggregationConfig(downlink=8, prior=2.5, carry=0.25, clamp=0.02, step=0.5, weighting="samples")
    assert (made.max_level, made.prior_q16, made.carry_milli, made.clamp_q16, made.step_milli) == (
        7,
        98_304,
        250,
        1311,
        500,
    )
    assert (made.heaviest, AggregationConfig().heaviest) == (10_000, 0)
    assert (AggregationConfig().max_level, AggregationConfig().clamp_q16) == (0, 655)
    assert AggregationConfig(clamp=made.clamp).clamp * ONE == 1311


def test_a_value_is_said_with_as_few_digits_as_mean_it() -> None:
    by_name = {one.name: one for kind in TABLES for one in knobs(kind)}
    clamp = PRESETS["default"].aggregation.clamp
    assert clamp == 131 / ONE
    assert by_name["clamp"].said(clamp) == "0.002"
    assert by_name["deadline_s"].said(4_000_000.0) == "4000000"
    assert by_name["learning_rate"].said(1e-6) == "0.000001"
    assert by_name["learning_rate"].said(4294.967295) == "4294.967295"
    assert [by_name["relay"].said(True), by_name["codec"].said("rans"), by_name["downlink"].said(8)] == [
        *("true", '"rans"', "8")
    ]


def test_a_change_between_two_runs_is_said_in_the_files_own_words() -> None:
    before = {"rounds": asdict(RoundsConfig()), "aggregation": asdict(AggregationConfig(clamp=0.002))}
    del before["rounds"]["total"]  # a setting that there was not is none that changed
    now = {
        "rounds": RoundsConfig(total=5, deadline_s=300, minimum=1),
        "training": TrainingConfig(epochs=9),
        "aggregation": AggregationConfig(clamp=0.003, downlink=4),
    }
    assert changes(before, now) == [
        "[rounds] deadline_s: 600 -> 300",
        '[aggregation] downlink: "exact" -> 4',
        "[aggregation] clamp: 0.002 -> 0.003",
    ]
    assert changes({name: asdict(table) for name, table in now.items()}, now) == []


@pytest.mark.parametrize(
    ("said", "bits_per_index"), [("", None), ("bits_per_index = 12\n", 12.0), ("bits_per_index = 7.5\n", 7.5)]
)
def test_a_device_may_say_how_thrifty_it_is(tmp_path: Path, said: str, bits_per_index: float | None) -> None:
    assert edge(tmp_path, EDGE + said + "[data]").bits_per_index == bits_per_index


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
        (EDGE + "thrift = 12\n[data]", "thrift is called bits_per_index now"),
        (EDGE + "bits_per_index = 0\n[data]", "bits_per_index is 0.001 .* 1000 bits, found 0"),
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
        ("[training]\nlearning_rate = 0.0", "learning_rate is 0.000001 .. 4294.967295, found 0"),
        ("[training]\nlearning_rate = inf", "learning_rate is 0.000001"),
        ("[training]\nepochs = 0", "epochs is 1 .. 65535, found 0"),
        ("[training]\nepochs = 2.0", "epochs is an integer, found 2.0"),
        ('[training]\ncodec = "zip"', "codec 'zip' is unknown; there are packed, rans, hmrc"),
        ('[training]\ncodec = "#200"', "codec '#200' is unknown; there are packed, rans, hmrc"),
        ('[training]\noptimizer = "lion"', "optimizer 'lion' is unknown; there are adam, sgd"),
        ("[training]\nmomentum = 1.0", "momentum is 0 .. 0.999999, found 1.0"),
        ("[training]\nkappa = 30", r"kappa \(30\) cannot be above kappa_max \(24\)"),
        ("[training]\nkappa = 0.0004", "kappa is 0.001 .. 1000 bits, found 0.0004"),
        ("[training]\nmasks = 256", "masks is 1 .. 255, found 256"),
        ("[training]\nstraight_trough = true", "unknown key 'straight_trough'; did you mean 'straight_through'?"),
        ("[aggregation]\ndownlink = 2.5", "downlink is an integer or a text, found 2.5"),
        ("[aggregation]\ndownlink = true", "downlink is an integer or a text, found True"),
        ("[aggregation]\ndownlink = 1", 'downlink is "exact" or 2 .. 65535, found 1'),
        ('[aggregation]\ndownlink = "all"', 'downlink is "exact" or 2 .. 65535, found .all.'),
        ('[aggregation]\nweighting = "size"', "weighting 'size' is unknown; there are equal, samples"),
        ("[aggregation]\nprior = 0.5", "prior is 1 .. 1000, found 0.5"),
        ("[aggregation]\nclamp = 0.5", "clamp is "),
        ("aggregation = 3", "aggregation is a table, found 3"),
        ("[broker]\nport = 0", "broker: port is 1 .. 65535, found 0"),
        ("[work]\nepochs = 3", r"table \[work\] is called \[training\] now"),
        ("[learning]\nrelay = true", r"table \[learning\] is called \[aggregation\] now"),
        ("[training]\nrelay = true", r"relay stands in \[aggregation\], not in \[training\]"),
        ("[aggregation]\nkappa = 3", r"kappa stands in \[training\], not in \[aggregation\]"),
        ("[training]\nstratified = true", "stratified is gone: "),
        ("[training]\nentropy = 0.1", "entropy is gone: "),
        ("[aggregation]\ncontrol_variate = true", "control_variate is gone: "),
        ("[aggregation]\nhysteresis = 0.1", "hysteresis is gone: "),
        ('[training]\ncodec = "crn"', "codec 'crn' is gone: "),
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


# --- what follows from the table: schema, page, options ---


def agreed(kind: type, value: Any) -> bool:
    """True if the loader takes `value`; the schema must take it too then."""
    judge = jsonschema.Draft202012Validator(schema(kind, "here"))
    try:
        build(kind, value, "here", Path())
    except UserError:
        return False
    judge.validate(value)
    return True


@pytest.mark.parametrize(("kind", "text"), [(RunConfig, RUN_EXAMPLE), (EdgeConfig, EDGE_EXAMPLE)])
def test_the_schema_is_one_and_takes_the_example(kind: type, text: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(kind, "here"))
    assert agreed(kind, tomllib.loads(text))
    assert agreed(kind, tomllib.loads(text.replace("\n# ", "\n")))


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("rounds", "total", 0),
        ("rounds", "deadline_s", 0.5),
        ("training", "learning_rate", 5000),
        ("training", "epochs", "3"),
        ("training", "codec", "zip"),
        ("training", "codec", "#9"),
        ("training", "keep_optimizer", 1),
        ("aggregation", "downlink", "all"),
        ("aggregation", "downlink", 1),
        ("aggregation", "clamp", 0.5),
        ("aggregation", "kappa", 5),
        ("broker", "port", 65536),
        ("work", "epochs", 3),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses_where_one_key_is_enough_to_see_it(
    table: str, key: str, value: object
) -> None:
    judge = jsonschema.Draft202012Validator(schema(RunConfig, "here"))
    values: dict[str, Any] = {"job": "a", "bundle": "b", "state_dir": "s"}
    assert judge.is_valid(values)
    values |= {table: {key: value}}
    assert not judge.is_valid(values)
    assert not agreed(RunConfig, values)


BY_KEY = {one.name: one for kind in TABLES for one in knobs(kind)}
ODD = st.one_of(
    *(st.integers(-2, 70_000), st.floats(), st.booleans(), st.sampled_from(["exact", "adam", "rans", "a", "#7", ""]))
)


@given(st.lists(st.tuples(st.sampled_from(sorted(BY_KEY)), ODD), max_size=4), st.sampled_from([*PRESETS, "x"]))
def test_what_the_schema_refuses_the_loader_refuses_too(said: list[tuple[str, Any]], preset: str) -> None:
    values: dict[str, Any] = {"job": "a", "bundle": "b", "state_dir": "s", "preset": preset}
    for key, value in said:
        table = next(name for name, kind in zip(NAMES, TABLES, strict=True) if key in {one.name for one in knobs(kind)})
        values.setdefault(table, {})[key] = value
    agreed(RunConfig, values)


NAMES = ("rounds", "training", "aggregation")


def test_the_schema_names_the_defaults_that_a_file_without_a_preset_has() -> None:
    properties = schema(RunConfig, "here")["properties"]
    config = build(RunConfig, {"job": "a", "bundle": "b", "state_dir": "s"}, "here", Path())
    for name in NAMES:
        table = getattr(config, name)
        for one in knobs(type(table)):
            assert one.settled(properties[name]["properties"][one.name]["default"]) == getattr(table, one.name)
    assert schema(RunConfig, "here")["required"] == ["job", "bundle", "state_dir"]
    assert schema(EdgeConfig, "here")["required"] == ["device", "job", "bundle", "state_dir", "data"]


def test_the_command_prints_the_schema_of_either_file_and_names_what_it_has_none_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, kind in (["--schema"], RunConfig), (["--schema", "edge"], EdgeConfig):
        assert cli.main(["settings", *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["properties"] == schema(kind, "")["properties"]
    assert cli.main(["settings", "--schema", "walk"]) == 2
    assert "there is no walk.toml; --schema takes run, edge" in capsys.readouterr().err


def test_the_command_explains_one_setting_wherever_it_stands_and_names_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["settings", "kappa"]) == 0
    said = capsys.readouterr().out
    for part in ("run.toml [training]", "0.001 .. 1000 bits", "thrifty: 24", "option 12, in units of 1/1,000"):
        assert part in said
    assert cli.main(["settings", "port"]) == 0
    assert capsys.readouterr().out.count("[broker]") == 2
    assert cli.main(["settings", "kapa"]) == 2
    assert "no setting 'kapa'; did you mean kappa" in capsys.readouterr().err
    for table in ("rounds", "[rounds]"):
        assert cli.main(["settings", table]) == 2
        assert "[rounds] is a table; its settings: total, devices, per_round" in capsys.readouterr().err


@pytest.mark.parametrize("how", [[], ["--markdown"], ["--json"]])
def test_every_setting_is_in_the_list_the_page_and_the_json(how: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["settings", *how]) == 0
    said = capsys.readouterr().out.replace("\\|", "|")
    known = [(found["name"], found["meaning"]) for found in json.loads(said)] if how == ["--json"] else []
    for _, one in explain.everything():
        assert (one.name, one.meaning) in known if known else one.name in said and one.meaning[1:] in said
    if how == ["--markdown"]:
        assert "| `[training] kappa` | `5` | `24` | `5` |" in said


def test_options_on_a_command_line_say_what_a_file_would_say() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, "training", [*knobs(TrainingConfig), *knobs(AggregationConfig)], "thrifty")
    options = parser.parse_args(["--kappa", "7", "--keep-optimizer", "true", "--downlink", "exact"])
    assert {name: value for name, value in vars(options).items() if value is not None} == {
        "kappa": 7,
        "keep_optimizer": True,
        "downlink": "exact",
    }
    assert "relative entropy per byte sent (bits) (24)" in " ".join(parser.format_help().split())


def test_a_change_to_a_preset_may_be_of_either_table_and_what_is_gone_is_said_to_be() -> None:
    training, aggregation = settings_of("paper", {"epochs": 9, "downlink": 4}, "--set")
    assert training == replace(PRESETS["paper"].training, epochs=9)
    assert aggregation == replace(PRESETS["paper"].aggregation, downlink=4)
    with pytest.raises(UserError, match="--set: hysteresis is gone"):
        settings_of("paper", {"hysteresis": 0.1}, "--set")
    with pytest.raises(UserError, match="--set: unknown key 'epoch'; did you mean 'epochs'"):
        settings_of("paper", {"epoch": 1}, "--set")


@dataclass(frozen=True)
class Small:
    share: float = knob(0.5, "a share", least=0, most=1, scale=4)
    flag: bool = knob(False, "a flag")
    word: str | None = knob(None, "a word")

    def __post_init__(self) -> None:
        settle(self)


def test_a_settings_class_is_a_plain_dataclass_that_checks_itself() -> None:
    assert (Small(0.3).share, Small(word="a").word, Small().word) == (0.25, "a", None)
    assert fields(Small)[0].default == 0.5
    assert fields(Small)[0].default_factory is MISSING
    for wrong in (
        {"share": "much"},
        {"share": True},
        {"share": 1.1},
        {"share": float("nan")},
        {"flag": 1},
        {"word": 3},
    ):
        with pytest.raises(ValueError, match="is "):
            Small(**wrong)  # type: ignore[arg-type]
    assert {one.name: one.default is REQUIRED for one in knobs(EdgeConfig)}["device"]
