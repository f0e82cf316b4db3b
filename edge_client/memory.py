"""A device's memory ceiling, `memory_mb` in edge.toml: which micro-batch and variant stay below it, or why none does.

The estimate is `edge_client.runtimes.footprint`'s.
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

EIGHT: Final = 8  # fewer examples at a time are slower, each by its share of a pass over all weights
THREE: Final = 3  # and still faster than many more with direct convolutions, where the usual variant filters them
_M_MMAP_THRESHOLD: Final = -3  # of malloc.h


def for_device(config: EdgeConfig, bundle: Bundle, data: int) -> tuple[MicroBatchPlan, int] | None:
    """Return `fit` of a device's settings, None where they set no ceiling; `data`: bytes of its examples.

    To them comes a batch, as it is stored and as the network takes it. Raises UserError.
    """
    if not config.memory_mb:
        return None
    batch = 2 * 4 * bundle.batch * math.prod(bundle.spec.input)
    return fit(config.runtime, bundle, config.memory_mb, data + batch)


def give_back_at_once() -> None:
    """Let glibc give memory of a megabyte or more back to the system when it is freed, from now on; elsewhere nothing.

    Left alone it raises that bound to the size of what was freed (mallopt(3), M_MMAP_THRESHOLD), up to 32 MB. Vectors
    of a round then lie in the heap in holes that the next does not fit: CONV-4's rounds peaked at 180, 194, 202 MB.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def fit(name: str, bundle: Bundle, memory_mb: int, data: int = 0) -> tuple[MicroBatchPlan, int]:
    """Return the micro-batch and variant with which runtime `name` trains `bundle` below `memory_mb`, and the estimate.

    The estimate is in bytes, `memory_mb` in millions of them; `data`: bytes of the examples that the process holds.
    The usual variant as long as a micro-batch of EIGHT fits, or of THREE where it keeps `tiles`, the largest that does;
    below that, whichever takes more. Where graphs were made for one micro-batch, that one or none.
    Raises UserError, with numbers and with what would help.
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
    """The most examples at a time that stay below `ceiling` bytes; 0 if a single one does not."""
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
        except (UserError, ProtocolError):  # it is here, but cannot be opened
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
