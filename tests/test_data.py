"""A device's own examples: good files are read, and every bad one is named with what was expected."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.config import EdgeConfig
from edge_client.data import Dataset, DataSettings, doubtful_range, formats, load
from edge_client.data.idx import read
from seedmask.errors import UserError
from seedmask.io import settings
from seedmask.spec import Linear, ModelSpec, Tensor, scale_bits

X = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4)
Y = np.array([0, 1, 2, 3, 0, 1], np.uint8)


def told(value: object) -> str | None:
    """The name of a case: what the error says."""
    return value if isinstance(value, str) else ""


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def from_npz(folder: Path, spec: ModelSpec, content: bytes) -> Dataset:
    (folder / "mine.npz").write_bytes(content)
    return load(DataSettings("npz", {"path": str(folder / "mine.npz")}), spec)


def from_idx(folder: Path, spec: ModelSpec, images: bytes, labels: bytes) -> Dataset:
    (folder / "images").write_bytes(images)
    (folder / "labels").write_bytes(labels)
    return load(DataSettings("idx", {"images": str(folder / "images"), "labels": str(folder / "labels")}), spec)


# --- good files ---


def test_our_formats_are_found_as_those_of_any_package() -> None:
    assert {"idx", "npz"} <= set(formats())


@pytest.mark.parametrize("x", [X, X.reshape(6, 1, 4, 4), X.reshape(6, 16), X.astype(np.float32), X.astype(np.int32)])
def test_npz_is_read_in_the_models_shape(tmp_path: Path, tiny_spec: ModelSpec, x: np.ndarray) -> None:
    data = from_npz(tmp_path, tiny_spec, npz(x=x, y=Y))
    assert data.x.shape == (6, 1, 4, 4)
    assert np.array_equal(data.x.reshape(x.shape), x)
    assert (data.y.dtype, data.y.tolist()) == (np.int64, Y.tolist())


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_is_read_plain_or_gzipped(tmp_path: Path, tiny_spec: ModelSpec, pack: Any) -> None:
    data = from_idx(tmp_path, tiny_spec, pack(idx(X)), pack(idx(Y)))
    assert data.x.shape == (6, 1, 4, 4)
    assert np.array_equal(data.x[:, 0], X)
    assert data.y.tolist() == Y.tolist()


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int16])
def test_numbers_are_the_targets_of_a_model_that_is_judged_by_its_error(
    tmp_path: Path, tiny_spec: ModelSpec, kind: type
) -> None:
    spec = replace(tiny_spec, loss="mse")
    targets: Any = np.arange(24).reshape(6, 4).astype(kind)
    data = from_npz(tmp_path, spec, npz(x=X, y=targets))
    assert data.y.dtype == np.float32
    assert np.array_equal(data.y, targets)
    for wrong, says in (
        (targets[:, :3], r"targets are \[6, 3\], model tiny gives \[6, 4\]"),
        (Y, r"targets are \[6\], model tiny gives \[6, 4\]"),
        (np.where(targets == 5, np.nan, targets), "a target is not a finite number"),
    ):
        with pytest.raises(UserError, match=says):
            from_npz(tmp_path, spec, npz(x=X, y=wrong))


@pytest.mark.parametrize(("high", "doubted"), [(1, True), (16, True), (64, False), (255, False), (1000, True)])
def test_inputs_far_from_the_range_of_the_model_are_doubted(tiny_spec: ModelSpec, high: int, doubted: bool) -> None:
    warning = doubtful_range(Dataset(np.linspace(0, high, 96).reshape(6, 4, 4), Y), tiny_spec)
    assert (warning is not None) == doubted
    assert not doubted or f"inputs are 0 .. {high}, the model was exported for 0 .. 255" in str(warning)


def test_one_target_an_example_may_come_as_a_list(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    weight, layers = Tensor("w", (1, 16), scale_bits(0.5)), (tiny_spec.layers[0], Linear("w", None))
    spec = replace(tiny_spec, classes=1, layers=layers, tensors=(weight,), loss="mse")
    assert from_npz(tmp_path, spec, npz(x=X, y=Y / 2)).y.tolist() == (Y[:, None] / 2).tolist()


# --- files that do not fit the model ---


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (X, Y[:5], "data: 6 inputs and 5 labels"),
        (X[:0], Y[:0], "data: 0 inputs and 0 labels"),
        (X.reshape(6, 2, 8)[:, :, :7], Y, r"inputs are \[2, 7\], model tiny takes \[1, 4, 4\]"),
        (X, np.array([0, 1, 2, 4, 0, 1]), r"labels 0 \.\. 4, model tiny has classes 0 \.\. 3"),
        (X, np.array([0, -1, 2, 3, 0, 1]), r"labels -1 \.\. 3"),
        (X, np.full(6, 2**63 + 5, np.uint64), "data: labels"),
        (np.where(X == 7, -np.inf, X), Y, "data: an input is not a finite number"),
        (np.where(X == 7, np.nan, X), Y, "data: an input is not a finite number"),
        (np.where(X == 7, 1e39, X), Y, "or too large for float32"),
        (np.where(X == 7, -1e39, X), Y, "or too large for float32"),
        (X.astype(str), Y, "x must be numbers"),
        (X.astype(bool), Y, "x must be numbers"),
        (X, Y.astype(float), r"tiny takes one class number each, found float64 \[6\]"),
        (X, Y.reshape(6, 1), r"tiny takes one class number each, found \w+ \[6, 1\]"),
        (X, Y.reshape(6, 1, 1), r"y numbers \[n\] or \[n, outputs\]"),
        (X, Y.astype(str), r"y numbers \[n\] or \[n, outputs\]"),
        (np.uint8(3), Y, "x must be numbers"),
    ],
    ids=told,
)
def test_arrays_that_cannot_train_the_model_are_refused(
    tmp_path: Path, tiny_spec: ModelSpec, x: np.ndarray, y: np.ndarray, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        from_npz(tmp_path, tiny_spec, npz(x=x, y=y))


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (idx(X), idx(Y[:5]), "6 inputs and 5 labels"),
        (idx(X), idx(X), r"labels have one dimension, found \[6, 4, 4\]"),
        (idx(X[:, :3]), idx(Y), r"inputs are \[3, 4\]"),
        (idx(X), idx(Y + 1), r"labels 1 \.\. 4"),
        (idx(X)[:-1], idx(Y), r"a shape of \[6, 4, 4\] needs 96 bytes, found 95"),
        (idx(X) + b"!", idx(Y), "needs 96 bytes, found 97"),
        (idx(X)[:6], idx(Y), "is not an IDX file"),
        (b"", idx(Y), "is not an IDX file"),
        (b"\x89PNG and so on", idx(Y), "is not an IDX file of unsigned bytes .*'89504e47'"),
        (b"\0\0\x0d" + idx(X)[3:], idx(Y), "is not an IDX file of unsigned bytes"),
        (b"\0\0\x08\0" + b"x", idx(Y), "dimensions"),
        (b"\0\0\x08\xff" + struct.pack(">255I", *[1] * 255) + b"x", idx(Y), "dimensions"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1), idx(Y), "images"),
        (gzip.compress(idx(X))[:-9], idx(Y), "cannot read .*images"),
        (b"\x1f\x8b not gzip", idx(Y), "cannot read .*images"),
    ],
    ids=told,
)
def test_idx_files_that_are_wrong_or_truncated_are_refused(
    tmp_path: Path, tiny_spec: ModelSpec, images: bytes, labels: bytes, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        from_idx(tmp_path, tiny_spec, images, labels)


# --- files that are not what they say ---


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


def pickled() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([Evil()] * 6, dtype=object), allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (npz(x=X), r"has arrays x; it lacks y"),
        (npz(images=X, labels=Y), "has arrays images, labels; it lacks x, y"),
        (npz(x=np.array([Evil()] * 6, dtype=object), y=Y), "is not an npz archive of numbers"),
        (pickled(), "is not an npz archive of numbers"),
        (npz(x=X, y=Y)[:-30], "is not an npz archive of numbers"),
        (npz(x=X, y=Y)[:100], "is not an npz archive of numbers"),
        (b"", "is not an npz archive of numbers"),
        (b"hello", "is not an npz archive of numbers"),
        (gzip.compress(b"hello"), "is not an npz archive of numbers"),
    ],
    ids=told,
)
def test_archives_that_are_no_arrays_are_refused_and_no_pickle_is_run(
    tmp_path: Path, tiny_spec: ModelSpec, content: bytes, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        from_npz(tmp_path, tiny_spec, content)


def test_a_single_array_is_no_archive(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    out = io.BytesIO()
    np.save(out, X)
    with pytest.raises(UserError, match="a single array, not an archive"):
        from_npz(tmp_path, tiny_spec, out.getvalue())


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_damaged_archive_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, tiny_spec: ModelSpec, damage: list[tuple[int, int]]
) -> None:
    content = bytearray(npz(x=X, y=Y))
    for place, value in damage:
        content[place % len(content)] = value
    with contextlib.suppress(UserError):
        from_npz(tmp_path_factory.getbasetemp(), tiny_spec, bytes(content))


def test_every_damaged_byte_of_an_archive_is_survived(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    whole = npz(x=X, y=Y)
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 0xFF
        with contextlib.suppress(UserError):
            from_npz(tmp_path, tiny_spec, bytes(content))


@given(st.binary(max_size=60))
def test_any_bytes_are_an_idx_array_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.idx"
    for head in (b"", b"\0\0\x08", b"\0\0\x08\x01", b"\x1f\x8b"):
        path.write_bytes(head + content)
        with contextlib.suppress(UserError):
            assert read(path).dtype == np.uint8


# --- settings ---


def test_files_that_are_not_there_are_named(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    absent = tmp_path / "absent"
    labelled = {"images": str(absent), "labels": str(absent)}
    for wrong in (DataSettings("npz", {"path": str(absent)}), DataSettings("idx", labelled)):
        with pytest.raises(UserError, match=r"cannot read .*absent: No such file"):
            load(wrong, tiny_spec)
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        load(DataSettings("npz", {"path": str(tmp_path)}), tiny_spec)


def test_settings_that_name_no_file_or_no_format_say_so(tiny_spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"\[data\], format npz: 'path' is missing"):
        load(DataSettings("npz"), tiny_spec)
    with pytest.raises(UserError, match=r"\[data\], format idx: 'labels' is missing"):
        load(DataSettings("idx", {"images": "x"}), tiny_spec)
    with pytest.raises(UserError, match=r"\[data\] format 'csv' is unknown; there are .*idx, npz"):
        load(DataSettings("csv"), tiny_spec)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"pth": "mine.npz"}, r"\[data\]: unknown key 'pth'; did you mean 'path'\?"),
        ({"fromat": "idx"}, r"\[data\]: unknown key 'fromat'; did you mean 'format'\?"),
        ({"path": "mine.npz", "zoom": 2}, r"\[data\]: unknown key 'zoom'; format npz has path"),
        ({"path": 3}, r"format npz: path is a path, found 3"),
        ({"path": ""}, r"format npz: path is a path, found ''"),
        ({"path": "a\0b"}, r"format npz: path is a path, found"),
        ({"path": "~nobody-of-that-name/x"}, r"format npz: path: .*home"),
    ],
    ids=told,
)
def test_a_key_that_the_format_does_not_have_is_refused_and_the_nearest_named(
    tiny_spec: ModelSpec, keys: dict[str, object], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        load(DataSettings("npz", keys), tiny_spec)


def test_paths_of_the_table_are_relative_to_the_file_that_it_stands_in(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    (tmp_path / "mine.npz").write_bytes(npz(x=X, y=Y))
    edge = tmp_path / "edge.toml"
    edge.write_text('device = "a"\njob = "b"\nbundle = "c"\nstate_dir = "d"\n[data]\npath = "mine.npz"\n')
    assert len(load(settings.load(EdgeConfig, edge).data, tiny_spec).y) == 6
    edge.write_text(edge.read_text().replace("path", "pth"))
    with pytest.raises(UserError, match=r"edge\.toml: data: unknown key 'pth'; did you mean 'path'\?"):
        load(settings.load(EdgeConfig, edge).data, tiny_spec)
    edge.write_text(edge.read_text().replace('pth = "mine.npz"', "format = 7"))
    with pytest.raises(UserError, match=r"edge\.toml: data: format is a text, found 7"):
        settings.load(EdgeConfig, edge)


# --- sources of other packages ---


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package on the path with a source of data that cannot be imported, and one that is none."""
    site = tmp_path / "site"
    info = site / "seedmask_camera-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: seedmask-camera\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[seedmask.data]\nblind = seedmask_blind\nhollow = colorsys\n")
    (site / "seedmask_blind.py").write_text("import a_package_that_is_not_here\n")
    monkeypatch.syspath_prepend(str(site))


def test_a_package_brings_a_source_of_data_with_settings_of_its_own(
    plugin: Path, monkeypatch: pytest.MonkeyPatch, tiny_spec: ModelSpec
) -> None:
    monkeypatch.syspath_prepend(str(plugin))
    assert {"stripes", "idx", "npz"} <= set(formats())
    assert len(load(DataSettings("stripes", {"seed": 1, "side": 4, "count": 9}), tiny_spec).y) == 9
    wrong: list[tuple[dict[str, object], str]] = [
        ({}, r"\[data\], format stripes: 'seed' is missing"),
        ({"seed": 1, "cont": 2}, "unknown key 'cont'; did you mean 'count'"),
        ({"seed": 1, "count": 0}, "count is 1 or more, found 0"),
        ({"seed": -1}, r"stripes of seedmask.data \(package seedmask-garden\) failed to load: RuntimeError: no light"),
    ]
    for keys, says in wrong:
        with pytest.raises(UserError, match=says):
            load(DataSettings("stripes", keys), tiny_spec)


@pytest.mark.usefixtures("broken")
def test_a_source_that_is_broken_is_named_and_breaks_no_other(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"blind of .*seedmask-camera.* cannot be imported: ModuleNotFoundError: "):
        load(DataSettings("blind"), tiny_spec)
    with pytest.raises(UserError, match=r"hollow of .* lacks Settings, load; it has to have Settings, load"):
        load(DataSettings("hollow"), tiny_spec)
    assert len(from_npz(tmp_path, tiny_spec, npz(x=X, y=Y)).y) == 6


@pytest.mark.usefixtures("broken")
def test_the_process_that_talks_to_the_network_imports_no_source_of_data_of_others(
    tmp_path: Path, plugin: Path
) -> None:
    code = "import sys; import edge_client.cli; print(*sys.modules)"
    path = os.pathsep.join([str(tmp_path / "site"), str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "edge_client.data.npz" in done.stdout.split()  # whose keys the example of edge.toml shows
    assert not [name for name in done.stdout.split() if name == "colorsys" or name.startswith("seedmask_")]


@pytest.mark.usefixtures("broken")
def test_the_settings_of_every_source_are_explained_but_of_those_that_are_broken(
    tmp_path: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(plugin))
    (tmp_path / "site" / "seedmask_blind.py").write_text("def load(settings): ...\nSettings = dict\n")
    key, found = DataSettings.variants()
    assert key == "format"
    assert {"stripes", "idx", "npz"} <= set(found)
    assert not {"blind", "hollow"} & set(found)
    assert list(DataSettings.variants({"format": "idx"})[1]) == ["idx"]
    assert DataSettings.variants({"format": "nothing"}) == ("format", {})
