"""Names of MQTT topics.  PROTOCOL 8.

A device's name is part of its topics because brokers check topics and not payloads: an access rule on `d/<name>/`
prevents one device from sending in the name of another.
"""

from __future__ import annotations

from seedmask.wire import check_name, is_name

ROOT = "seedmask/3"


def round_(job: str) -> str:
    """Return the topic of announcements (retained)."""
    return f"{ROOT}/{check_name(job)}/round"


def aggregator(job: str) -> str:
    """Return the topic of the aggregator's heartbeat (retained, also its last will)."""
    return f"{ROOT}/{check_name(job)}/aggregator"


def theta(job: str, number: int, chunk: int | str) -> str:
    """Return the topic of one chunk of the theta of round `number` (retained); `chunk` '+' matches all of them."""
    return f"{ROOT}/{check_name(job)}/theta/{number}/{chunk}"


def delta(job: str, number: int, chunk: int | str) -> str:
    """Return the topic of one chunk of the difference to the theta of round `number` (retained); '+' matches all."""
    return f"{ROOT}/{check_name(job)}/delta/{number}/{chunk}"


def presence(job: str, device: str) -> str:
    """Return the topic of a device's presence (retained, also its last will); `device` '+' matches all of them."""
    return f"{ROOT}/{check_name(job)}/d/{device if device == '+' else check_name(device)}/presence"


def update(job: str, device: str) -> str:
    """Return the topic of the chunks of a device's updates; `device` '+' matches all of them."""
    return f"{ROOT}/{check_name(job)}/d/{device if device == '+' else check_name(device)}/update"


def receipt(job: str, device: str) -> str:
    """Return the topic of the receipts for one device."""
    return f"{ROOT}/{check_name(job)}/d/{check_name(device)}/receipt"


def device_of(topic: str) -> str | None:
    """Return the device's name in a topic `.../d/<device>/...`, or None if there is no valid one."""
    parts = topic.split("/")
    return parts[4] if len(parts) == 6 and parts[3] == "d" and is_name(parts[4]) else None
