"""Server rules: integers, so that no order of masks can matter; and whatever a rule of one's own may do wrong."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from capabilities import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator import rules
from aggregator.finished import finished
from aggregator.rules import FedPM, RuleError, Votes, registry, share_of, theta_of
from aggregator.rules.fedpm import Carried, initial
from aggregator.settings import AggregationConfig
from seedmask.errors import UserError
from seedmask.io.plugins import PluginError
from seedmask.mask import CLAMP, ONE, Mask, Theta
from seedmask.pooling import MAX_WEIGHT
from seedmask.shared import Shared
from seedmask.spec import ModelSpec

D = 40
EVEN = Theta.even(D)
COUNTS = AggregationConfig()


def conclude(votes: Votes, settings: AggregationConfig, theta: Theta, memory: bytes = b"") -> tuple[Theta, bytes]:
    return FedPM().conclude(votes, theta, memory, settings)


def masks_of(n: int, seed: int = 3) -> list[Mask]:
    return list(np.random.default_rng(seed).integers(0, 2, (n, D)).astype(np.uint8))


def folded(masks: list[Mask], weights: list[int] | None = None) -> Votes:
    votes = Votes.empty(masks[0].size)
    for mask, weight in zip(masks, weights or [1] * len(masks), strict=True):
        votes = votes.with_mask(mask, weight)
    return votes


def came_of(masks: list[Mask], aggregation: AggregationConfig = COUNTS, weights: list[int] | None = None) -> Theta:
    return conclude(folded(masks, weights), aggregation, EVEN)[0]


def ones(k: int, of: int) -> list[Mask]:
    """`of` masks, the first `k` of them all ones."""
    return [np.full(D, i < k, np.uint8) for i in range(of)]


def level(theta: Theta) -> int:
    """Its level, the same everywhere."""
    assert len(set(theta.level.tolist())) == 1
    return int(theta.level[0])


# --- as the authors published it: counts ---


def test_theta_is_the_count_of_ones_over_the_number_of_masks() -> None:
    masks = masks_of(7)
    theta = came_of(masks)
    assert (theta.max_level, theta.clamp) == (7, CLAMP)
    assert np.array_equal(theta.level, np.sum(masks, axis=0))


def test_folding_leaves_what_was_folded_alone() -> None:
    before = folded(masks_of(2))
    digest = before.digest()
    before.with_mask(np.ones(D, np.uint8))
    assert (before.digest(), before.masks) == (digest, 2)


def test_unanimous_weights_stay_off_certainty() -> None:
    mask = np.zeros(D, np.uint8)
    mask[::2] = 1
    q16 = came_of([mask] * 5).q16()
    assert set(q16[::2].tolist()) == {65536 - CLAMP}
    assert set(q16[1::2].tolist()) == {CLAMP}


def test_more_masks_than_a_byte_can_count_are_counted() -> None:
    theta = came_of([np.ones(D, np.uint8)] * 300)
    assert (theta.max_level, level(theta)) == (300, 300)


def test_no_mask_gives_no_probabilities() -> None:
    with pytest.raises(ValueError, match="no mask gives no probabilities"):
        conclude(Votes.empty(D), AggregationConfig(), EVEN)


# --- order ---

RECIPES = [
    AggregationConfig(),
    AggregationConfig(weighting="samples", max_samples=1 << 22),
    AggregationConfig(downlink=4, weighting="samples", max_samples=1 << 22),
    AggregationConfig(downlink=8, prior=2.0, carry=0.5, step=0.7),
    AggregationConfig(downlink=4, weighting="samples", max_samples=1 << 22, step=1.5),
    AggregationConfig(step=0.5),
]


@settings(max_examples=30, deadline=None)
@given(
    st.permutations(range(6)), st.sampled_from(RECIPES), st.lists(st.integers(1, MAX_WEIGHT), min_size=6, max_size=6)
)
def test_order_does_not_matter_with_any_option(
    order: list[int], aggregation: AggregationConfig, weights: list[int]
) -> None:
    """Two rounds, the second one on what the first one left."""
    before = Theta(np.arange(D, dtype=np.uint16) % 4, 3)

    def run(order: list[int]) -> list[bytes]:
        theta, memory, found = before, b"", []
        for round_ in range(2):
            votes = Votes.empty(D)
            for i in order:
                votes = votes.with_mask(masks_of(6, round_)[i], weights[i] if aggregation.heaviest else 1)
            theta, memory = conclude(votes, aggregation, theta, memory)
            found += [votes.digest(), theta.digest(), memory]
        return found

    assert run(order) == run(list(range(6)))


# --- weights ---


def test_a_device_with_three_times_the_examples_counts_three_times() -> None:
    weighted, repeated = came_of(masks_of(2), weights=[1, 3]), came_of([*masks_of(2), *masks_of(2)[1:] * 2])
    assert weighted.digest() == repeated.digest()


def test_equal_examples_are_equal_counts_whatever_their_number() -> None:
    theta = came_of(masks_of(5), weights=[2000] * 5)
    assert theta.digest() == came_of(masks_of(5)).digest()
    assert came_of(masks_of(2), weights=[1000, 500]).max_level == 3


def test_weights_without_a_small_common_measure_are_rounded_to_eight_bits() -> None:
    masks, weights = masks_of(3), [70_001, 1_234_567, 999_983]
    theta = came_of(masks, weights=weights)
    mean = np.average(masks, axis=0, weights=weights)
    assert theta.max_level == 255
    assert np.abs(theta.level / 255 - mean).max() < 0.5001 / 255


@pytest.mark.parametrize("weight", [0, -1, MAX_WEIGHT + 1])
def test_a_weight_out_of_range_is_a_bug_at_home(weight: int) -> None:
    with pytest.raises(ValueError, match="a weight is 1"):
        Votes.empty(D).with_mask(masks_of(1)[0], weight)


def test_the_heaviest_round_that_can_be_fits_the_integers() -> None:
    full = Votes(np.full(2, MAX_WEIGHT * 255 * 65535, np.int64), MAX_WEIGHT * 255 * 65535, 255 * 65535, MAX_WEIGHT)
    aggregation = AggregationConfig(downlink=256, prior=1000.0, carry=0.999)
    theta, memory = Theta.even(2), b""
    for _ in range(50):
        theta, memory = conclude(full, aggregation, theta, memory)
        assert theta.level.tolist() == [255, 255]
    far = conclude(full, AggregationConfig(downlink=256, step=10.0), Theta.even(2))[0]
    assert far.level.tolist() == [255, 255]


# --- levels ---


@pytest.mark.parametrize(("k", "expected"), [(0, 0), (1, 0), (2, 1), (5, 1), (6, 2), (9, 2), (10, 3), (13, 3), (14, 4)])
def test_levels_are_the_nearest_ones_and_half_a_level_goes_up(k: int, expected: int) -> None:
    """With sixteen masks a step of five levels is four masks; two, six, ten and fourteen of them are halves."""
    theta = came_of(ones(k, 16), AggregationConfig(downlink=5))
    assert (theta.max_level, level(theta)) == (4, expected)


# --- prior, carry, step ---


def test_shares_that_are_no_integers_are_refused_with_their_unit() -> None:
    with pytest.raises(TypeError, match=r"shares are integers in units of 2\*\*-16, 0 \.\. 65536; found float64"):
        theta_of(np.full(D, 0.5), COUNTS, EVEN.exact)


def test_a_prior_pulls_towards_one_half() -> None:
    """lambda = 3: (ones + 2) / (masks + 4)."""
    assert level(came_of(ones(4, 4), AggregationConfig(downlink=1001, prior=3.0))) == 750
    assert level(came_of(ones(0, 4), AggregationConfig(downlink=1001, prior=3.0))) == 250
    assert level(came_of(ones(2, 4), AggregationConfig(downlink=1001, prior=3.0))) == 500


def test_counts_that_are_carried_over_count_with_their_share() -> None:
    aggregation = AggregationConfig(downlink=1001, carry=0.5)
    theta, memory = conclude(folded(ones(4, 4)), aggregation, EVEN)
    assert level(theta) == 1000
    theta, memory = conclude(folded(ones(0, 4)), aggregation, theta, memory)
    assert level(theta) == 333  # two of the first four count: 2 / 6
    theta, memory = conclude(folded(ones(0, 4)), aggregation, theta, memory)
    assert level(theta) == 143  # (2 / 2) / (6 / 2 + 4)
    fresh, _ = conclude(folded(ones(0, 4)), aggregation, theta)
    assert level(fresh) == 0


def test_the_servers_step_goes_part_of_the_way() -> None:
    aggregation = AggregationConfig(downlink=1001, step=0.25)
    theta, memory = conclude(folded(ones(4, 4)), aggregation, EVEN)
    assert level(theta) == 625
    theta, memory = conclude(folded(ones(4, 4)), aggregation, theta, memory)
    assert level(theta) == 719  # from the exact 0.625
    far, _ = conclude(folded(ones(4, 4)), replace(aggregation, step=9), EVEN)
    assert level(far) == 1000


def test_what_rounding_takes_away_is_remembered() -> None:
    """Steps too small for one level add up until they make one."""
    aggregation = AggregationConfig(downlink=4, step=0.05)
    theta, memory, found = Theta(np.zeros(D, np.uint16), 3), b"", []
    for _ in range(12):
        theta, memory = conclude(folded(ones(4, 4)), aggregation, theta, memory)
        found.append(level(theta))
    assert found[0] == 0
    assert 1 in found


def test_a_memory_comes_back_from_its_bytes_and_from_no_others() -> None:
    for aggregation in (AggregationConfig(carry=0.5, downlink=4), AggregationConfig(step=0.5, downlink=4)):
        _, data = conclude(folded(masks_of(3)), aggregation, EVEN)
        again = Carried.from_bytes(data, D)
        assert again.to_bytes() == data
        assert (again.ones is not None) == (aggregation.carry > 0)
        assert again.masks == 3 * ONE * aggregation.carry
        for broken in (b"", data[:-1], data + b"x"):
            with pytest.raises(ValueError, match="no memory of"):
                Carried.from_bytes(broken, D)


def test_a_rule_that_needs_no_memory_leaves_none() -> None:
    for aggregation in (
        AggregationConfig(),
        AggregationConfig(weighting="samples", max_samples=1 << 22),
        AggregationConfig(downlink=4),
        AggregationConfig(downlink=4, average_last=5),
    ):
        assert not aggregation.remembers
        assert conclude(folded(masks_of(3)), aggregation, EVEN)[1] == b""


# --- the drift of theta by resampling ---


def test_without_any_learning_theta_drifts_as_wright_and_fisher_say() -> None:
    """Theta <- .01 + .98 Binomial(K, theta) / K: with ten devices most weights are at an end after 25 rounds."""
    wide, devices, rounds = 4000, 10, 25
    rng = np.random.default_rng(0)
    model = np.full(wide, 0.5)
    for _ in range(rounds):
        model = 0.01 + 0.98 * rng.binomial(devices, model) / devices
    expected = float(((model < 0.011) | (model > 0.989)).mean())
    theta = Theta.even(wide)
    for round_ in range(rounds):
        votes = Votes.empty(wide)
        for k in range(devices):
            u = Shared(9, round_, "j", f"pi-{k}").uniforms(wide)
            votes = votes.with_mask((u < theta.q16()).astype(np.uint8))
        theta, _ = conclude(votes, AggregationConfig(), theta)
    found = float(np.isin(theta.level, (0, theta.max_level)).mean())
    assert expected > 0.5
    assert abs(found - expected) < 0.05


# --- the first theta, the last model ---


def test_the_first_round_starts_even() -> None:
    assert initial("half", 1, D).digest() == initial("half", 1, D, 131).digest() == EVEN.digest()
    assert set(EVEN.q16().tolist()) == {32768}


@pytest.mark.parametrize(
    ("init", "deviation"),
    [("uniform", 0.98 / 12**0.5), ("normal", 0.2080)],
)
def test_a_drawn_start_has_its_distribution_and_depends_on_the_seed_alone(init: str, deviation: float) -> None:
    theta = initial(init, 42, 50_000)
    p = theta.q16() / ONE
    assert theta.max_level == 255
    assert abs(p.mean() - 0.5) < 0.005
    assert abs(p.std() - deviation) < 0.003
    assert initial(init, 42, 50_000).digest() == theta.digest()
    assert initial(init, 43, 50_000).digest() != theta.digest()
    assert np.array_equal(initial(init, 42, 100).level, theta.level[:100])


def test_the_finished_model_is_the_threshold_of_the_mean() -> None:
    thetas = [Theta(np.array(levels, np.uint16), 10) for levels in ([0, 10, 4], [0, 2, 5], [7, 2, 6])]
    assert finished(tuple(thetas[-1:]))[0].tolist() == thetas[-1].threshold().tolist() == [1, 0, 1]
    assert finished(tuple(thetas))[0].tolist() == [0, 0, 1]
    other = Theta(np.array([3, 3, 0], np.uint16), 3)
    assert finished((thetas[0], other))[0].tolist() == [1, 1, 0]


# --- rules of one's own ---


def test_ours_is_announced_like_anybodys_and_an_unknown_one_names_the_nearest() -> None:
    assert "fedpm" in rules.names()
    assert isinstance(rules.load("fedpm"), FedPM)
    with pytest.raises(UserError, match=r"rule 'fedmp' is not installed; there are .*fedpm.*; did you mean 'fedpm'\?"):
        rules.load("fedmp")


def test_shares_and_thetas_turn_into_each_other() -> None:
    theta = Theta(np.arange(D, dtype=np.uint16), D - 1, exact=np.array([3, -4], np.int32))
    settings = AggregationConfig(downlink=D)
    again = theta_of(share_of(theta), settings, theta.exact)
    assert again.digest() == replace(theta, clamp=settings.clamp_q16).digest()
    votes = Votes.empty(D, 2)
    for mask, weight, moved in zip(ones(1, 4), [3, 1, 1, 1], [(1, 2), (0, 0), (0, 0), (2, 0)], strict=True):
        votes = votes.with_mask(mask, weight).with_exact(np.array(moved), weight)
    assert set(votes.share().tolist()) == {ONE // 2}
    assert votes.exact(theta).tolist() == [4, -3]  # moved by 5/6 and by 6/6
    assert theta_of(votes.share(), AggregationConfig(), theta.exact).max_level == 255


@pytest.mark.parametrize("where", ["docstring", "how-to"])
def test_the_example_goes_half_of_the_way(where: str, tiny_spec: ModelSpec) -> None:
    page = (ROOT / "docs" / "how-to" / "own-server-rule.md").read_text(encoding="utf-8")
    blocks = {
        "docstring": textwrap.dedent((rules.__doc__ or "").split("nothing else:\n")[1].split("\nFrom Python")[0]),
        "how-to": page.split("```python\n")[1].split("```")[0],
    }
    found: dict[str, type[rules.Rule]] = {}
    exec(blocks[where], found)
    rule, settings = found["Damped"](), AggregationConfig(downlink=101)
    theta = registry.start(rule, tiny_spec, settings)
    votes = Votes.empty(theta.d).with_mask(np.ones(theta.d, np.uint8))
    for level in (75, 88, 94):
        theta, _ = registry.conclude(rule, votes, theta, b"", settings)
        assert set(theta.level.tolist()) == {level}


class Own(FedPM):
    """Returns what it was made with, and keeps what it was given."""

    def __init__(self, *returns: object) -> None:
        self.returns = returns
        self.given: tuple[object, ...] = ()

    def start(self, spec: ModelSpec, settings: AggregationConfig) -> Theta:
        return self.returns[0]  # type: ignore[return-value]

    def conclude(self, *given: object) -> tuple[Theta, bytes]:
        self.given = given
        return self.returns[0]  # type: ignore[return-value]


def test_a_rule_is_given_the_sums_theta_its_memory_and_the_settings() -> None:
    rule, votes, settings = Own((EVEN, b"mine")), folded(masks_of(3)), AggregationConfig(rule="own")
    theta, memory = registry.conclude(rule, votes, EVEN, b"before", settings)
    assert (theta.digest(), memory) == (EVEN.digest(), b"mine")
    seen, held, remembered, said = rule.given
    assert isinstance(seen, Votes)
    assert isinstance(held, Theta)
    assert (seen.digest(), held.digest(), remembered, said) == (votes.digest(), EVEN.digest(), b"before", settings)


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        (None, r"has to return \(theta, memory\), found NoneType"),
        ((EVEN,), "has to return .*, found a tuple of 1"),
        ((EVEN, None), "memory has to be bytes, b'' for none, found NoneType"),
        ((np.zeros(D), b""), r"has to return a Theta, found an array float64 \[40\]"),
        ((Theta.even(D - 1), b""), "returned a Theta of 39 weights and 0 exact values, the model has 40 and 0"),
    ],
)
def test_what_is_no_theta_of_the_model_is_named(returns: object, says: str) -> None:
    with pytest.raises(RuleError, match=f"^rule 'own', conclude, round 7: {says}"):
        registry.conclude(Own(returns), Votes.empty(D, round_=7), EVEN, b"", AggregationConfig(rule="own"))


def test_a_rule_that_cannot_begin_a_job_is_named(tiny_spec: ModelSpec) -> None:
    settings = AggregationConfig(rule="own")
    with pytest.raises(RuleError, match=r"^rule 'own', start: returned a Theta of 40 weights .* has 324 and"):
        registry.start(Own(EVEN), tiny_spec, settings)
    with pytest.raises(RuleError, match=r"^rule 'own' failed in start: IndexError: "):
        registry.start(Own(), tiny_spec, settings)


def test_a_rule_cannot_change_what_it_is_told() -> None:
    class Careless(FedPM):
        def conclude(self, votes: Votes, *others: object) -> tuple[Theta, bytes]:
            votes.ones[:] = 0
            return EVEN, b""

    votes = folded(masks_of(3))
    before = votes.digest()
    with pytest.raises(RuleError, match="read-only"):
        registry.conclude(Careless(), votes, EVEN, b"", AggregationConfig())
    assert votes.digest() == before
    votes.with_mask(np.ones(D, np.uint8))  # and we can go on


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            "colorsys:rgb_to_hsv",
            r"odd of seedmask\.rules \(package odd-rules\) cannot be made, without arguments: T",
        ),
        ("collections:OrderedDict", "makes a OrderedDict, which lacks start, conclude"),
        ("math:pi", "has to be a class, or a function that makes a rule; found float"),
        ("a_package_that_is_not_here:Rule", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_an_entry_point_that_is_no_rule_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, says: str
) -> None:
    info = tmp_path / "odd_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[seedmask.rules]\nodd = {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=says):
        rules.load("odd")
