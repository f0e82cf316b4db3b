"""Who holds which examples: the splits under which federated learning is measured."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from seedmask.errors import UserError

Indices = npt.NDArray[np.int64]


def split(how: str, labels: Indices, devices: int, per_device: int, rng: np.random.Generator) -> list[Indices]:
    """Positions of each device's examples. `how` is 'iid' or 'c_max:<c>'; `per_device` 0 deals out all. UserError."""
    n = len(labels)
    if devices < 1 or devices > n or per_device < 0:
        raise UserError(f"{devices} devices cannot share {n} examples")
    size = min(per_device or n // devices, n // devices)
    if how == "iid":
        order = rng.permutation(n)
        return [np.sort(order[i * size : (i + 1) * size]) for i in range(devices)]
    kind, _, number = how.partition(":")
    if kind == "c_max" and number.isdecimal() and int(number) >= 1:
        return _c_max(labels, devices, size, int(number), rng)
    raise UserError(f"split {how!r} is unknown; there are iid and c_max:<classes per device>, e.g. c_max:2")


def _c_max(labels: Indices, devices: int, size: int, c: int, rng: np.random.Generator) -> list[Indices]:
    """At most `c` neighbouring classes a device, and sizes up to ten times apart, as in FedPM (arXiv 2209.15328).

    `size` is the mean, unless a device would take more of a class than there is. Devices may share examples only once a
    class has run out, which is when its deck is reshuffled.
    """
    classes = np.unique(labels)
    if c > len(classes):
        raise UserError(f"c_max:{c}, but there are {len(classes)} classes")
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
