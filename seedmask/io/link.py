"""Link: interface between the programs and the network, implemented by MQTT and by the simulator's broker in memory.

A link connects and reconnects by itself and reports what happened as events, in order. `publish` never blocks, and
delivers at least once while this process lives. The caller must store what has to survive the process (the outbox, the
store), because a broker's acknowledgement does not mean that the message was delivered.
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
    """Event: the broker answers and subscriptions are active.

    Retained messages arrive again, unless the broker has kept our session.
    """


@dataclass(frozen=True)
class Disconnected:
    """Event: the connection is lost and the link tries to reconnect. `reason` is for people."""

    reason: str


@dataclass(frozen=True)
class Received:
    """Event: a message arrived on a topic that is subscribed."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Refused:
    """Event: the broker refused a message or a subscription (access rules, size). `reason` is for people."""

    topic: str
    reason: str


Event: TypeAlias = Connected | Disconnected | Received | Refused


@dataclass(frozen=True)
class Will:
    """Last will: message that the broker publishes, retained, when a connection ends without a disconnect message."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Traffic:
    """Bytes sent and received so far, over all connections of a link."""

    sent: int
    received: int


class Link(Protocol):
    """Connection to a broker."""

    def subscribe(self, topic: str) -> None:
        """Subscribe to a topic filter, now and after every reconnection."""

    def unsubscribe(self, topic: str) -> None:
        """Cancel the subscription to a topic filter."""

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Queue a message for sending; an empty retained one clears the topic."""

    def receive(self, timeout: float) -> Event | None:
        """Return the next event, or None if there is none within `timeout` seconds."""

    def busy(self) -> bool:
        """Return True while a published message has not been acknowledged by the broker."""

    def chunk_bytes(self) -> int:
        """Return the size of a chunk in bytes that fits a message here (PROTOCOL 7; less if the broker demands it)."""

    def traffic(self) -> Traffic:
        """Return the bytes sent and received so far, as counted on the wire."""

    def close(self) -> None:
        """Send what is queued, as far as time allows, and disconnect; the last will is not published."""
