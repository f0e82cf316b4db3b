"""The finished model: a seed and one mask, about one bit a weight, and no damage goes unnoticed."""

from __future__ import annotations

import hashlib
import math
import struct
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedmask.codec import tensors
from seedmask.errors import BundleError, CodecError, ProtocolError
from seedmask.model import FinishedModel, Sizes, decode, encode, sizes
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


def sized(model: FinishedModel) -> Sizes:
    return sizes(model, encode(model))


def wide() -> ModelSpec:
    tensors = (Tensor("a.weight", (100, 1000), scale_bits(0.1)),)
    return ModelSpec("wide", 1, (1000,), (0, 1), 100, (Flatten(), Linear("a.weight", None)), tensors)


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.42, 0.45, 0.5, 0.6, 0.8, 0.95, 0.99])
def test_a_mask_is_coded_within_two_per_cent_of_its_entropy(share: float) -> None:
    spec = wide()
    model = FinishedModel(spec, mask_of(spec.d, share))
    p = float(model.mask.mean())
    bound = -spec.d * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    of = sized(model)
    assert of.entropy_bits == pytest.approx(bound)
    assert 8 * of.mask <= 1.02 * bound
    assert 8 * of.mask <= spec.d + 7
    encoded = encode(model)
    assert (of.file, of.file - of.mask - of.spec) == (len(encoded), 45)
    assert np.array_equal(decode(encoded).mask, model.mask)


@pytest.mark.parametrize("sizes_", [[5000] * 20, [10] * 14 + [16643] * 6, [500] * 10 + [9500] * 10])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.4, 0.95])
def test_many_tensors_cost_two_per_cent_as_long_as_they_are_not_small(sizes_: list[int], share: float) -> None:
    masks = [np.random.default_rng(n).permutation(np.arange(n) < max(1, n * share)) for n in sizes_]
    p = [mask.mean() for mask in masks]
    bound = -sum(n * (q * math.log2(q) + (1 - q) * math.log2(1 - q)) for n, q in zip(sizes_, p, strict=True) if q < 1)
    coded = tensors.encode(np.concatenate(masks).astype(np.uint8), sizes_)
    assert 8 * len(coded) <= 1.02 * bound


def test_sizes_are_those_of_the_file_whichever_codec_it_took() -> None:
    model = FinishedModel(wide(), mask_of(wide().d, 0.1))
    spec, mask = model.spec.canonical(), np.packbits(model.mask, bitorder="little").tobytes()
    body = b"SMK1" + struct.pack("<I", len(spec)) + spec + struct.pack("<BI", 1, len(mask)) + mask
    data = body + hashlib.sha256(body).digest()  # packed, where tensors is half of it
    of = sizes(decode(data), data)
    assert (of.file, of.spec, of.mask, of.codec) == (len(data), len(spec), 12500, "packed")


def test_the_bound_takes_each_tensor_by_itself(tiny_spec: ModelSpec) -> None:
    mask = np.zeros(tiny_spec.d, np.uint8)
    mask[:256] = 1  # all of the first tensor, none of the others: there is nothing to tell
    of = sized(FinishedModel(tiny_spec, mask))
    assert (of.entropy_bits, of.codec, of.mask) == (0.0, "tensors", 4)  # 256 takes two bytes
    mask[0] = 0
    assert sized(FinishedModel(tiny_spec, mask)).entropy_bits == pytest.approx(
        -math.log2(1 / 256) - 255 * math.log2(255 / 256)
    )


def test_a_mask_of_equal_odds_costs_a_bit_a_weight(tiny_spec: ModelSpec) -> None:
    of = sized(FinishedModel(tiny_spec, mask_of(tiny_spec.d, 0.5)))
    assert (of.codec, of.mask) == ("packed", (tiny_spec.d + 7) // 8)


@given(st.lists(st.tuples(st.integers(1, 70), st.integers(0, 70)), min_size=1, max_size=6), st.integers(0, 99))
def test_any_tensors_come_back(parts: list[tuple[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.concatenate([rng.permutation(np.arange(n) < k).astype(np.uint8) for n, k in parts])
    lengths = [n for n, _ in parts]
    payload = tensors.encode(mask, lengths)
    assert np.array_equal(tensors.decode(payload, lengths), mask)
    for cut in range(len(payload)):
        with pytest.raises(CodecError):
            tensors.decode(payload[:cut], lengths)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_mask_or_refused(payload: bytes) -> None:
    for lengths in ([1], [4, 3], [40, 1, 9]):
        try:
            mask = tensors.decode(payload, lengths)
        except CodecError:
            continue
        assert tensors.encode(mask, lengths) == payload  # and then they are the only bytes for it


def test_two_million_weights_are_there_in_under_a_second() -> None:
    weight = Tensor("a.weight", (1000, 2000), scale_bits(0.1))
    spec = ModelSpec("wide", 1, (2000,), (0, 1), 1000, (Flatten(), Linear("a.weight", None)), (weight,))
    data = encode(FinishedModel(spec, mask_of(spec.d, 0.3)))
    began = time.process_time()
    decode(data).weights()
    assert time.process_time() - began < 1  # a tenth of that where this was written


def test_ternary_weights_times_their_constants_are_the_weights(tiny_spec: ModelSpec) -> None:
    model = FinishedModel(tiny_spec, mask_of(tiny_spec.d, 0.4))
    parts = [(signs.reshape(-1) * np.float32(c)) for signs, c in model.ternary().values()]
    assert np.array_equal(np.concatenate(parts), model.weights())
    assert {name: signs.shape for name, (signs, _) in model.ternary().items()} == {
        tensor.name: tensor.shape for tensor in tiny_spec.tensors
    }


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
        head + struct.pack("<BI", 2, len(packed)) + packed,
        head + struct.pack("<BI", 1, len(packed) - 1) + packed[1:],
    ):
        with pytest.raises(ProtocolError):
            decode(signed(body))


@given(st.binary(max_size=100))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    for wrong in (data, b"SMK1" + data, signed(b"SMK1" + data)):
        with pytest.raises(ProtocolError):
            decode(wrong)
