"""Splits: how the examples of a data set are divided among devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from seedmask.errors import UserError

Indices = npt.NDArray[np.int64]


WAYS = ("iid", "c_max:<c>", "classes:<c>", "dirichlet:<alpha>", "sizes:<ratio>")


def split(how: str, labels: npt.NDArray[Any], devices: int, per_device: int, rng: np.random.Generator) -> list[Indices]:
    """Return the positions of each device's examples, sorted; each device has at least one.

    how: one of WAYS.
    labels: classes, int64 [n], or other targets [n, ...], for which only "iid" and "sizes" are possible.
    per_device: examples per device (their mean, if sizes differ), at most an equal share of all; 0: that share.

    Raises UserError if `how` is unknown, or cannot be made of these examples.
    """
    n = len(labels)
    if devices < 1 or devices > n or per_device < 0:
        raise UserError(f"{devices} devices cannot share {n} examples")
    size = min(per_device or n // devices, n // devices)
    kind, _, number = how.partition(":")
    if kind in ("c_max", "classes", "dirichlet") and labels.dtype.kind not in "ui":
        raise UserError(f"split {how!r} deals out classes, and these targets are none; there are iid and sizes:<ratio>")
    if how == "iid":
        return _deal(np.full(devices, size), n, rng)
    if kind in ("c_max", "classes") and number.isdecimal() and number.isascii() and int(number) >= 1:
        c, there = int(number), len(np.unique(labels))
        if c > there:
            raise UserError(f"{how}, but there are {there} classes")
        return _c_max(labels, devices, size, c, rng) if kind == "c_max" else _classes(labels, devices, size, c, rng)
    value = _positive(number)
    if kind == "dirichlet" and value is not None:
        return _dirichlet(labels, devices, size, value, rng)
    if kind == "sizes" and value is not None and value >= 1:
        return _deal(_geometric(devices, size * devices, value, rng), n, rng)
    raise UserError(f"split {how!r} is unknown; there are {', '.join(WAYS)}, e.g. classes:2, dirichlet:0.3, sizes:10")


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < np.inf else None


def _deal(sizes: npt.NDArray[np.int64], n: int, rng: np.random.Generator) -> list[Indices]:
    """Return randomly drawn examples, `sizes[k]` of them for device k."""
    ends = np.cumsum(sizes)
    order = rng.permutation(n)
    return [np.sort(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _geometric(devices: int, total: int, ratio: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return sizes that sum to `total`, in geometric steps from the smallest to `ratio` times that, in random order."""
    weight = rng.permutation(np.geomspace(1, ratio, devices))
    ends = np.rint(total * np.cumsum(weight) / weight.sum()).astype(
        np.int64
    )  # ends are rounded, not sizes, so that their sum is exact
    sizes: npt.NDArray[np.int64] = np.maximum(1, np.diff(ends, prepend=0))
    while sizes.sum() > total:  # rounding a size up to 1 is paid for by the largest
        sizes[sizes.argmax()] -= 1
    return sizes


def _classes(labels: Indices, devices: int, size: int, c: int, rng: np.random.Generator) -> list[Indices]:
    """Return equal sizes, with exactly `c` classes per device in equal parts (McMahan et al., arXiv 1602.05629).

    As far as possible, every class has the same number of devices. Devices share no examples. Raises UserError if a
    class has too few examples.
    """
    classes, stock = np.unique(labels, return_counts=True)
    if size < c:
        raise UserError(f"classes:{c} needs at least {c} examples per device, found {size}")
    order, shifts = rng.permutation(len(classes)), rng.choice(len(classes), c, replace=False)
    owned = order[(np.arange(devices)[:, None] + shifts) % len(classes)]  # [devices, c], no class twice in a row
    parts = size // c + (np.arange(c) < size % c)
    wanted = np.zeros(len(classes), np.int64)
    np.add.at(wanted, owned, np.broadcast_to(parts, owned.shape))
    if (wanted > stock).any():
        k = int((wanted - stock).argmax())
        raise UserError(
            f"classes:{c} with {size} examples for each of {devices} devices needs {wanted[k]} of class {classes[k]}, "
            f"there are {stock[k]}; ask for fewer per device"
        )
    decks = [rng.permutation(np.flatnonzero(labels == k)) for k in classes]
    taken = np.zeros(len(classes), np.int64)
    out = []
    for own in owned:
        picks = []
        for k, part in zip(own, parts, strict=True):
            picks.append(decks[k][taken[k] : taken[k] + part])
            taken[k] += part
        out.append(np.sort(np.concatenate(picks)))
    return out


def _dirichlet(labels: Indices, devices: int, size: int, alpha: float, rng: np.random.Generator) -> list[Indices]:
    """Return equal sizes, with classes mixed by Dirichlet(alpha * their shares) (Hsu et al., arXiv 1909.06335).

    Devices share no examples: if a class has run out, the other classes give more, in the proportions drawn.
    """
    classes, stock = np.unique(labels, return_counts=True)
    share = stock / stock.sum()
    decks = [rng.permutation(np.flatnonzero(labels == k)) for k in classes]
    left = stock.copy()
    out = []
    for _ in range(devices):
        mix = rng.dirichlet(alpha * share)
        take = np.zeros(len(classes), np.int64)
        while missing := size - int(take.sum()):
            open_ = left > take
            # For a tiny alpha, the mix can be 0 on every class that is left: then draw in proportion to what is left.
            odds = np.where(open_, mix, 0.0)
            odds = odds / odds.sum() if odds.sum() > 0 else np.where(open_, left - take, 0) / (left - take)[open_].sum()
            take = np.minimum(take + rng.multinomial(missing, odds), left)
        out.append(np.sort(np.concatenate([deck[n - k : n] for deck, n, k in zip(decks, left, take, strict=True)])))
        left = left - take
    return out


def _c_max(labels: Indices, devices: int, size: int, c: int, rng: np.random.Generator) -> list[Indices]:
    """Return at most `c` neighbouring classes per device, and sizes up to tenfold apart (FedPM, arXiv 2209.15328).

    `size` is their mean, unless a device would need more examples of a class than there are. When all examples of a
    class are taken, it is shuffled and dealt out again, so that devices then share some.
    """
    classes = np.unique(labels)
    weight = rng.permutation(np.geomspace(1, 10, devices))
    ends = np.rint(size * devices * np.cumsum(weight) / weight.sum()).astype(
        int
    )  # ends are rounded, not sizes, so that their sum is exact
    sizes = np.maximum(1, np.diff(ends, prepend=0))
    decks = {int(k): rng.permutation(np.flatnonzero(labels == k)) for k in classes}
    taken = dict.fromkeys(decks, 0)
    first = rng.permutation(np.arange(devices) % len(classes))  # every class gets its share of devices
    out = []
    for device in range(devices):
        own = [int(classes[(first[device] + j) % len(classes)]) for j in range(c)]
        picks = []
        for position, k in enumerate(own):
            wanted = int(sizes[device]) // c + (position < int(sizes[device]) % c)
            wanted = min(wanted, len(decks[k]))
            if taken[k] + wanted > len(decks[k]):
                decks[k], taken[k] = rng.permutation(decks[k]), 0
            picks.append(decks[k][taken[k] : taken[k] + wanted])
            taken[k] += wanted
        out.append(np.sort(np.concatenate(picks)))
    return out
