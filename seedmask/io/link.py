"""Link: all that a program sees of the network. MQTT is one implementation, the simulator's broker in memory another.

A link connects and reconnects by itself. It reports what happened as events, in order; `publish` never blocks and
promises at-least-once while this process lives. What must outlive the process is the caller's business (the outbox,
the store), because a broker's acknowledgement is not delivery.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from seedmask.knobs import knob, settle


@dataclass(frozen=True)
class Broker:
    """Table [broker]: how to reach a broker. `ca`, `cert` and `key` imply `tls`. Raises ValueError."""

    host: str = knob("127.0.0.1", "name or address of the MQTT broker")
    port: int = knob(1883, "its port", least=1, most=65535)
    username: str | None = knob(None, "user at the broker")
    password_file: Path | None = knob(None, "file with the user's password")
    tls: bool = knob(False, "encrypted, with the system's certificate authorities")
    ca: Path | None = knob(None, "encrypted, with this certificate authority")
    cert: Path | None = knob(None, "client certificate")
    key: Path | None = knob(None, "its private key")
    keepalive: int = knob(60, "seconds of silence after which a connection is tested", least=5, most=65535)

    def __post_init__(self) -> None:
        settle(self)
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together")


@dataclass(frozen=True)
class Connected:
    """The broker answers and subscriptions are in place. What it retains comes again unless it kept our session."""


@dataclass(frozen=True)
class Disconnected:
    """The connection is gone; the link is trying again. `reason` is for people."""

    reason: str


@dataclass(frozen=True)
class Received:
    """A message on a topic we subscribed to."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Refused:
    """The broker would not take a message of ours (access rules, size). `reason` is for people."""

    topic: str
    reason: str


Event: TypeAlias = Connected | Disconnected | Received | Refused


@dataclass(frozen=True)
class Will:
    """What the broker publishes for us, retained, when we vanish."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Traffic:
    """Bytes on the wire so far, all connections of this link together."""

    sent: int
    received: int


class Link(Protocol):
    """A connection to a broker."""

    def subscribe(self, topic: str) -> None:
        """Receive what is published under a topic filter, now and after every reconnection."""

    def unsubscribe(self, topic: str) -> None:
        """Stop receiving under a filter that was subscribed."""

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Hand over a message; an empty retained one clears the topic."""

    def receive(self, timeout: float) -> Event | None:
        """The next event, waiting up to `timeout` seconds; None if there was none."""

    def busy(self) -> bool:
        """Whether something that was published has not been taken by the broker yet."""

    def chunk_bytes(self) -> int:
        """How many bytes of a large object one message may carry here (PROTOCOL 7; lower if the broker says so)."""

    def traffic(self) -> Traffic:
        """Bytes as counted on the wire."""

    def close(self) -> None:
        """Leave in good order."""
