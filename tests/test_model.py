"""The finished model: a seed and one mask, about one bit a weight, and no damage goes unnoticed."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedmask.errors import BundleError, ProtocolError
from seedmask.model import FinishedModel, decode, encode
from seedmask.spec import Flatten, Linear, ModelSpec, Tensor, scale_bits


def mask_of(d: int, share: float, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).random(d) < share).astype(np.uint8)


def signed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_a_model_comes_back_from_its_file(tiny_spec: ModelSpec, share: float) -> None:
    mask = mask_of(tiny_spec.d, share)
    back = decode(encode(FinishedModel(tiny_spec, mask)))
    assert back.spec == tiny_spec
    assert np.array_equal(back.mask, mask)


def test_its_weights_are_the_frozen_ones_where_the_mask_is_set(tiny_spec: ModelSpec) -> None:
    mask = mask_of(tiny_spec.d, 0.5)
    weights = FinishedModel(tiny_spec, mask).weights()
    assert weights.dtype == np.float32
    assert set(np.unique(weights).tolist()) == {-0.5, 0.0, 0.5}
    assert np.array_equal(weights != 0, mask == 1)


def wide() -> ModelSpec:
    tensors = (Tensor("a.weight", (100, 1000), scale_bits(0.1)),)
    return ModelSpec("wide", 1, (1000,), (0, 1), 100, (Flatten(), Linear("a.weight", None)), tensors)


@pytest.mark.parametrize(("share", "bits"), [(0.5, 1.01), (0.1, 0.5), (0.01, 0.1)])
def test_a_file_has_one_bit_a_weight_and_less_for_a_sparse_mask(share: float, bits: float) -> None:
    spec = wide()
    size = len(encode(FinishedModel(spec, mask_of(spec.d, share)))) - len(spec.canonical())
    assert 8 * size / spec.d < bits


def test_the_same_model_has_the_same_bytes(tiny_spec: ModelSpec) -> None:
    mask = mask_of(tiny_spec.d, 0.3)
    assert encode(FinishedModel(tiny_spec, mask)) == encode(FinishedModel(tiny_spec, mask.copy()))


def test_every_damaged_byte_and_every_proper_prefix_is_refused(tiny_spec: ModelSpec) -> None:
    data = encode(FinishedModel(tiny_spec, mask_of(tiny_spec.d, 0.5)))
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1
        for wrong in (bytes(broken), data[:place]):
            with pytest.raises(BundleError):
                decode(wrong)


def test_a_file_whose_parts_do_not_fit_is_refused_although_its_digest_is_right(tiny_spec: ModelSpec) -> None:
    spec = tiny_spec.canonical()
    head = b"SMK1" + struct.pack("<I", len(spec)) + spec
    packed = bytes((tiny_spec.d + 7) // 8)
    assert decode(signed(head + struct.pack("<BI", 1, len(packed)) + packed)).mask.sum() == 0
    for body in (
        b"SMK1",
        b"SMK1" + struct.pack("<I", 10**9) + spec,
        head,
        head + struct.pack("<BI", 1, len(packed) + 1) + packed,
        head + struct.pack("<BI", 1, len(packed)) + packed + b"!",
        head + struct.pack("<BI", 9, len(packed)) + packed,
        head + struct.pack("<BI", 1, len(packed) - 1) + packed[1:],
    ):
        with pytest.raises(ProtocolError):
            decode(signed(body))


@given(st.binary(max_size=100))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    for wrong in (data, b"SMK1" + data, signed(b"SMK1" + data)):
        with pytest.raises(ProtocolError):
            decode(wrong)
