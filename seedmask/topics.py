"""Topic names, the same in every program and every language.  PROTOCOL 8.

Device names stand in the topic because brokers check topics, not payloads: an access rule on `d/<name>/` is what
keeps one device from speaking for another.
"""

from __future__ import annotations

from seedmask.wire import check_name, is_name

ROOT = "seedmask/3"


def round_(job: str) -> str:
    """Announce, retained."""
    return f"{ROOT}/{check_name(job)}/round"


def aggregator(job: str) -> str:
    """Heartbeat, retained, and the aggregator's last will."""
    return f"{ROOT}/{check_name(job)}/aggregator"


def theta(job: str, number: int, chunk: int | str) -> str:
    """Chunk `chunk` of round `number`'s probabilities, retained; '+' for all."""
    return f"{ROOT}/{check_name(job)}/theta/{number}/{chunk}"


def delta(job: str, number: int, chunk: int | str) -> str:
    """Chunk `chunk` of what changed from the probabilities before to those of round `number`, retained; '+' for all."""
    return f"{ROOT}/{check_name(job)}/delta/{number}/{chunk}"


def presence(job: str, device: str) -> str:
    """Presence of one device, retained, and its last will."""
    return f"{ROOT}/{check_name(job)}/d/{device if device == '+' else check_name(device)}/presence"


def update(job: str, device: str) -> str:
    """Chunks of one device's updates."""
    return f"{ROOT}/{check_name(job)}/d/{device if device == '+' else check_name(device)}/update"


def receipt(job: str, device: str) -> str:
    """Receipts for one device."""
    return f"{ROOT}/{check_name(job)}/d/{check_name(device)}/receipt"


def device_of(topic: str) -> str | None:
    """The device in `.../d/<device>/...`, None for other topics and for what cannot be a device's name."""
    parts = topic.split("/")
    return parts[4] if len(parts) == 6 and parts[3] == "d" and is_name(parts[4]) else None
