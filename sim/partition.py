"""Who holds which examples: the splits under which federated learning is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from seedmask.errors import UserError

Indices = npt.NDArray[np.int64]


WAYS = ("iid", "c_max:<c>", "classes:<c>", "dirichlet:<alpha>", "sizes:<ratio>")


def split(how: str, labels: npt.NDArray[Any], devices: int, per_device: int, rng: np.random.Generator) -> list[Indices]:
    """Return the positions of each device's examples, sorted; each device has at least one.

    `how` is one of WAYS; `labels` are classes, int64 [n], or other targets [n, ...], for which "iid" and "sizes" alone
    make sense. `per_device` is how many (the mean, where sizes differ), at most an equal share of all; 0 deals out as
    many as there are. Raises UserError: what was found, what can be made.
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
    """Examples at random, `sizes[k]` to device k."""
    ends = np.cumsum(sizes)
    order = rng.permutation(n)
    return [np.sort(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _geometric(devices: int, total: int, ratio: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sizes that sum to `total`, the largest `ratio` times the smallest and geometric in between, in random order."""
    weight = rng.permutation(np.geomspace(1, ratio, devices))
    ends = np.rint(total * np.cumsum(weight) / weight.sum()).astype(np.int64)  # so that rounding loses nobody
    sizes: npt.NDArray[np.int64] = np.maximum(1, np.diff(ends, prepend=0))
    while sizes.sum() > total:  # what went to the smallest comes from the largest
        sizes[sizes.argmax()] -= 1
    return sizes


def _classes(labels: Indices, devices: int, size: int, c: int, rng: np.random.Generator) -> list[Indices]:
    """Exactly `c` classes a device, in equal parts, and equal sizes: the label skew of McMahan et al. (1602.05629).

    Classes have devices in equal numbers, as far as that goes. Nothing is shared and nothing shortened on the quiet:
    a class that would run out is an error.
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
    """Equal sizes, and on each device a mix of classes drawn from Dirichlet(alpha x shares): Hsu et al., 1909.06335.

    Without replacement: what a class that has run out cannot give comes from the others, in the proportions drawn.
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
            # A mix can be 0 on every class that is left, for a tiny alpha: then as the stock is.
            odds = np.where(open_, mix, 0.0)
            odds = odds / odds.sum() if odds.sum() > 0 else np.where(open_, left - take, 0) / (left - take)[open_].sum()
            take = np.minimum(take + rng.multinomial(missing, odds), left)
        out.append(np.sort(np.concatenate([deck[n - k : n] for deck, n, k in zip(decks, left, take, strict=True)])))
        left = left - take
    return out


def _c_max(labels: Indices, devices: int, size: int, c: int, rng: np.random.Generator) -> list[Indices]:
    """At most `c` neighbouring classes a device, and sizes up to ten times apart, as in FedPM (arXiv 2209.15328).

    `size` is the mean, unless a device would take more of a class than there is. Devices may share examples only once a
    class has run out, which is when its deck is reshuffled.
    """
    classes = np.unique(labels)
    weight = rng.permutation(np.geomspace(1, 10, devices))
    ends = np.rint(size * devices * np.cumsum(weight) / weight.sum()).astype(int)  # so that rounding loses nobody
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
