"""Memory ceiling of a device (`memory_mb` in edge.toml): choose the micro-batch and the graphs that stay below it.

How much memory a choice takes is estimated by `edge_client.runtimes.footprint`.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from typing import Final

from edge_client.config import EdgeConfig
from edge_client.runtimes import registry
from edge_client.runtimes.contract import MicroBatchPlan
from edge_client.runtimes.footprint import MB, Footprint, tiles
from seedmask.bundle import Bundle
from seedmask.errors import ProtocolError, UserError

EIGHT: Final = 8  # smaller micro-batches are slower: each one adds a pass over all weights
THREE: Final = 3  # with Winograd convolutions even three at a time are faster than many with direct ones
_M_MMAP_THRESHOLD: Final = -3  # of malloc.h


def for_device(config: EdgeConfig, bundle: Bundle, data: int) -> tuple[MicroBatchPlan, int] | None:
    """Return the plan below this device's `memory_mb` and its estimate in bytes; None if no ceiling is set.

    `data`: bytes of the device's examples; one batch is added to them, raw and as float32. Raises UserError, see `fit`.
    """
    if not config.memory_mb:
        return None
    batch = 2 * 4 * bundle.batch * math.prod(bundle.spec.input)
    return fit(config.runtime, bundle, config.memory_mb, data + batch)


def give_back_at_once() -> None:
    """Make glibc return freed blocks of a megabyte or more to the system at once; do nothing with another C library.

    By default glibc raises that threshold, up to 32 MB, to the size of what was freed (mallopt(3), M_MMAP_THRESHOLD).
    The vectors of a round then leave holes in the heap that those of the next round do not fit into: CONV-4 peaked at
    180, 194 and 202 MB in three rounds.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def fit(name: str, bundle: Bundle, memory_mb: int, data: int = 0) -> tuple[MicroBatchPlan, int]:
    """Return the plan with which runtime `name` trains `bundle` below `memory_mb`, and its estimated peak in bytes.

    `memory_mb` is in millions of bytes; `data`: bytes of the examples that the process holds. The first variant of the
    graphs is chosen, with the largest micro-batch that fits, if that is at least EIGHT (THREE with Winograd
    convolutions); otherwise the variant that allows the larger micro-batch. Graphs that were exported for one fixed
    micro-batch fit with that one or not at all.
    Raises UserError if nothing fits; it states the numbers and what would help.
    """
    footprint = registry.footprint(name)
    if footprint is None:
        able = ", ".join(each for each in registry.names() if registry.footprint(each))
        raise UserError(f"runtime {name} keeps to no memory_mb; these do: {able}")
    best, enough = MicroBatchPlan(0), THREE if tiles(bundle.spec) else EIGHT
    if footprint.fixed:
        only = registry.usual(name, bundle)
        best = only if footprint.bytes_of(bundle, only) + data <= memory_mb * MB else best
    else:
        for variant in registry.variants(name, bundle):
            micro = _largest(footprint, bundle, variant, memory_mb * MB - data)
            if micro > best.micro and best.micro < min(enough, bundle.batch):
                best = MicroBatchPlan(micro, variant)
    if best.micro:
        return best, footprint.bytes_of(bundle, best) + data
    raise UserError(_refusal(name, footprint, bundle, memory_mb, data))


def _largest(footprint: Footprint, bundle: Bundle, variant: str, ceiling: int) -> int:
    """Return the largest micro-batch that stays below `ceiling` bytes; 0 if not even one example does."""
    low, high = 0, bundle.batch
    while low < high:
        middle = (low + high + 1) // 2
        if footprint.bytes_of(bundle, MicroBatchPlan(middle, variant)) <= ceiling:
            low = middle
        else:
            high = middle - 1
    return low


def _refusal(name: str, footprint: Footprint, bundle: Bundle, memory_mb: int, data: int) -> str:
    def fewest(which: str, used: Footprint) -> list[MicroBatchPlan]:
        if used.fixed:
            return [registry.usual(which, bundle)]
        return [MicroBatchPlan(1, variant) for variant in registry.variants(which, bundle)]

    def least(which: str, used: Footprint) -> int:
        return data + min(used.bytes_of(bundle, each) for each in fewest(which, used))

    def fits(which: str) -> bool:
        used = registry.footprint(which)
        try:
            return used is not None and least(which, used) <= memory_mb * MB
        except (UserError, ProtocolError):  # it is installed, but cannot open the bundle
            return False

    spec, vector = bundle.spec, 4 * bundle.spec.d
    taken, helps = "one example at a time takes", "a smaller batch does not"
    if footprint.fixed:
        micro = fewest(name, footprint)[0].micro
        taken = f"the {micro} examples at a time of its graphs take"
        helps = f"an export with a --batch below {micro} helps"
    text = (
        f"memory_mb = {memory_mb} is too little for {spec.name} on runtime {name}: {taken} about "
        f"{math.ceil(least(name, footprint) / MB)} MB, of which {footprint.base / MB:.0f} are the program, "
        f"{footprint.vectors * vector / MB:.0f} vectors of {spec.d:,} weights and {data / MB:.0f} the examples"
    )
    able = [
        each for each in registry.names() if each != name and registry.footprint(each) and not registry.missing(each)
    ]
    fitting = [each for each in able if not registry.lacking(each, bundle) and fits(each)]
    if fitting:
        return f"{text}; runtime {' or '.join(fitting)} would fit"
    return f"{text}; a higher ceiling or a network with fewer weights helps, {helps}"
