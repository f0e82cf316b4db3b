"""Bundles: one model, one file, to the byte; anything else is refused with a reason."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from seedmask import bundle
from seedmask.bundle import Bundle, from_bytes, to_bytes
from seedmask.errors import BundleError, SpecError, UserError
from seedmask.spec import Linear, ModelSpec, Tensor, scale_bits

SPEC = ModelSpec("m", 1, (4,), (0, 1), 2, (Linear("w", None),), (Tensor("w", (2, 4), scale_bits(0.5)),))
FILES = {"onnx/train.onnx": b"train" * 20, "onnx/predict.onnx": b"predict", "empty.bin": b""}
GOOD = to_bytes(Bundle(SPEC, 16, FILES))


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(pairs: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, data in pairs:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.compress_type = 3, how
            archive.writestr(info, data)
    return out.getvalue()


def with_manifest(**change: Any) -> bytes:
    parts = members(GOOD)
    manifest = {**json.loads(parts["manifest.json"]), **change}
    parts["manifest.json"] = json.dumps(manifest, indent=1, sort_keys=True).encode()
    return zipped(list(parts.items()))


def test_a_bundle_comes_back_and_gives_the_same_bytes_again() -> None:
    once = from_bytes(GOOD)
    assert (once.spec, once.batch, once.files) == (SPEC, 16, FILES)
    assert to_bytes(once) == GOOD
    assert to_bytes(from_bytes(to_bytes(once))) == GOOD


def test_the_order_in_which_files_were_made_does_not_matter() -> None:
    assert to_bytes(Bundle(SPEC, 16, dict(reversed(FILES.items())))) == GOOD


def test_the_helper_of_these_tests_writes_what_the_bundle_writes() -> None:
    assert zipped(list(members(GOOD).items())) == GOOD


def test_every_truncation_is_refused() -> None:
    for n in range(len(GOOD)):
        with pytest.raises((BundleError, SpecError)):
            from_bytes(GOOD[:n])


def test_one_byte_changed_anywhere_is_refused() -> None:
    for at in range(len(GOOD)):
        for change in (0x01, 0x80, 0xFF):
            bad = GOOD[:at] + bytes([GOOD[at] ^ change]) + GOOD[at + 1 :]
            with pytest.raises((BundleError, SpecError)):
                from_bytes(bad)


@pytest.mark.parametrize("where", ["before", "after"])
def test_nothing_hides_around_the_members(where: str) -> None:
    with pytest.raises(BundleError):
        from_bytes(b"#!/bin/sh\n" + GOOD if where == "before" else GOOD + b"\n")


def test_a_wrong_digest_is_named() -> None:
    parts = members(GOOD)
    parts["onnx/predict.onnx"] = b"PREDICT"
    with pytest.raises(BundleError, match=r"onnx/predict\.onnx has SHA-256"):
        from_bytes(zipped(list(parts.items())))


def test_a_compressed_member_is_refused() -> None:
    with pytest.raises(BundleError, match="compressed"):
        from_bytes(zipped(list(members(GOOD).items()), zipfile.ZIP_DEFLATED))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_duplicate_member_is_refused() -> None:
    with pytest.raises(BundleError, match="twice"):
        from_bytes(zipped([*members(GOOD).items(), ("empty.bin", b"")]))


def test_an_extra_member_is_named() -> None:
    with pytest.raises(BundleError, match=r"disagree about setup\.py"):
        from_bytes(zipped([*members(GOOD).items(), ("setup.py", b"")]))


def test_a_missing_member_is_named() -> None:
    with pytest.raises(BundleError, match=r"disagree about empty\.bin"):
        from_bytes(zipped([(n, b) for n, b in members(GOOD).items() if n != "empty.bin"]))


def test_members_in_another_order_are_refused() -> None:
    with pytest.raises(BundleError, match="order"):
        from_bytes(zipped(list(reversed(members(GOOD).items()))))


def test_a_name_that_could_leave_a_folder_is_refused_even_if_the_manifest_lists_it() -> None:
    entry = {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    parts = members(GOOD)
    manifest = json.loads(parts["manifest.json"])
    manifest["files"]["../evil.py"] = entry
    parts["manifest.json"] = json.dumps(manifest, indent=1, sort_keys=True).encode()
    with pytest.raises(BundleError, match=r"\.\./evil\.py"):
        from_bytes(zipped([*parts.items(), ("../evil.py", b"")]))


def test_members_that_share_their_bytes_are_refused_before_they_are_read() -> None:
    """A hundred entries over one member: a small file that would be large in memory."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("manifest.json", bytes(5000))
        first = archive.infolist()[0]
        for i in range(100):
            twin = zipfile.ZipInfo(f"m{i}.bin")
            twin.header_offset = first.header_offset
            twin.CRC, twin.file_size, twin.compress_size = first.CRC, first.file_size, first.compress_size
            archive.filelist.append(twin)
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(BundleError, match="overlap"):
        from_bytes(out.getvalue())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 2}, "format 2"),
        ({"model": "0" * 64}, "the manifest says 0000000000000000"),
        ({"model": 5}, "damaged"),
        ({"batch": 0}, "batch"),
        ({"batch": True}, "batch"),
        ({"batch": 1.5}, "batch"),
        ({"files": []}, "disagree"),
        ({"files": 3}, "damaged"),
        ({"author": "me"}, "not as seedmask writes it"),
    ],
)
def test_a_manifest_with_another_value_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(BundleError, match=text):
        from_bytes(with_manifest(**change))


def test_a_member_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(BundleError, match=r"no x\.pte; it has empty\.bin, onnx/predict\.onnx, onnx/train\.onnx"):
        from_bytes(GOOD).file("x.pte")


@pytest.mark.parametrize("name", ["manifest.json", "spec.json", "../x.y", "/x.y", "X.y", "x", "a//b.c", "a\\b.c"])
def test_a_bad_member_name_is_a_bug_at_home(name: str) -> None:
    with pytest.raises(ValueError, match="member's name"):
        to_bytes(Bundle(SPEC, 1, {name: b""}))


def test_load_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.seedmask"
    with pytest.raises(UserError, match=r"cannot read the bundle .*m\.seedmask"):
        bundle.load(path)
    path.write_bytes(GOOD[:-1])
    with pytest.raises(UserError, match=r"m\.seedmask: not a bundle"):
        bundle.load(path)
    path.write_bytes(GOOD)
    assert bundle.load(path).spec == SPEC
