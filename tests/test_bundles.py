"""The bundles that ship: there without torch, and to the byte what the exporter makes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sim.bundles
from seedmask import bundle as bundles
from seedmask.errors import SpecError
from sim.bundles import BATCH, names, shipped

FOLDER = Path(sim.bundles.__file__).parent


def test_they_open_without_torch_and_onnx() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = sys.modules['onnxruntime'] = None\n"
        "from sim.bundles import names, shipped; print(*(shipped(name).spec.name for name in names()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == list(names())


def test_every_file_is_one_that_ships_and_is_small() -> None:
    sizes = {path.stem: path.stat().st_size for path in FOLDER.glob("*.bundle")}
    assert sizes.keys() == set(names())
    assert max(sizes.values()) < 200_000


def test_a_network_that_does_not_ship_is_none() -> None:
    assert shipped("resnet20g") is None
    assert shipped("../bundles/mlp") is None


def test_a_seed_that_is_none_is_refused() -> None:
    with pytest.raises(SpecError, match="seed"):
        shipped("mlp", seed=1 << 64)


@pytest.mark.export
@pytest.mark.requires("torch", "onnx")
@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("seed", [1, 0xFEDC_BA98_7654_3210])
def test_they_are_to_the_byte_what_the_exporter_makes(name: str, seed: int) -> None:
    exported = importlib.import_module("sim.bundles.__main__").exported
    found = shipped(name, seed)
    assert found is not None
    assert found.batch == BATCH
    same = bundles.to_bytes(found) == exported(name, seed)
    assert same, f"the exporter makes another {name}.bundle now: `make zoo` writes it again, if that was meant"
