"""MQTT broker in memory, on virtual time, with the faults of a real network; programs in the simulator use its links.

It does what MQTT guarantees at QoS 1 with a persistent session, and no more: delivery at least once and in order,
retained messages on subscription, wills. It counts the bytes of MQTT 5 PUBLISH packets, without acknowledgements, pings
and TCP.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from seedmask.chunks import CHUNK_BYTES
from seedmask.io.link import Connected, Disconnected, Event, Received, Traffic, Will


@dataclass
class Agenda:
    """Agenda of a virtual clock: actions by time, in virtual seconds; at equal times in the order they were added."""

    now: float = 0.0
    _queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Add an `action` to be done at `time`, or now if that has passed."""
        heapq.heappush(self._queue, (max(time, self.now), next(self._order), action))

    def run(self, done: Callable[[], bool], limit: float) -> bool:
        """Do the actions in order until `done()`; return False if none are left or `limit` has passed before that."""
        while not done():
            if not self._queue or self._queue[0][0] > limit:
                return False
            self.now, _, action = heapq.heappop(self._queue)
            action()
        return True


@dataclass(frozen=True)
class Wire:
    """Connection of one device: `up` and `down` in bytes per second, `latency` in seconds."""

    up: float = float("inf")
    down: float = float("inf")
    latency: float = 0.0


def packet_bytes(topic: str, payload: bytes) -> int:
    """Return the bytes of an MQTT 5 PUBLISH packet with QoS 1 and no properties (MQTT 5.0, section 3.3)."""
    rest = 2 + len(topic.encode()) + 2 + 1 + len(payload)
    return 1 + max(1, -(-rest.bit_length() // 7)) + rest


def matches(pattern: str, topic: str) -> bool:
    """True if a topic filter matches a topic (MQTT 5.0, section 4.7)."""
    wanted, found = pattern.split("/"), topic.split("/")
    for i, part in enumerate(wanted):
        if part == "#":
            return True
        if i >= len(found) or part not in ("+", found[i]):
            return False
    return len(wanted) == len(found)


class MemoryBroker:
    """Broker of one simulation: its links and its retained messages."""

    def __init__(self, agenda: Agenda) -> None:
        """Begin without links."""
        self.agenda = agenda
        self.retained: dict[str, bytes] = {}
        self.links: list[MemoryLink] = []

    def route(self, topic: str, payload: bytes, retain: bool) -> None:
        """Deliver a message to every link that subscribed to its topic, and retain it if `retain`."""
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for link in list(self.links):
            link.offer(topic, payload)


class MemoryLink:
    """Link that passes each event to `deliver` at its virtual time, because virtual programs never wait."""

    def __init__(
        self, broker: MemoryBroker, wire: Wire, deliver: Callable[[Event], None], will: Will | None = None
    ) -> None:
        """Connect; `deliver` gets Connected as the next event."""
        self.broker, self.wire, self.deliver, self.will = broker, wire, deliver, will
        self.topics: list[str] = []
        self.up = True
        self._sent = self._received = 0
        self._up_free = self._down_free = 0.0
        self._backlog: list[tuple[str, bytes, bool]] = []
        self._held: list[tuple[str, bytes]] = []  # what the broker keeps for the session while it is offline
        broker.links.append(self)
        self._later(0.0, Connected())

    def _later(self, time: float, event: Event) -> None:
        self.broker.agenda.at(time, lambda: self._hand_over(event))

    def _hand_over(self, event: Event) -> None:
        if self in self.broker.links:
            self.deliver(event)

    def subscribe(self, topic: str) -> None:
        """See Link."""
        if topic not in self.topics:
            self.topics.append(topic)
        for name, payload in sorted(self.broker.retained.items()):
            if matches(topic, name):
                self._arrive(name, payload)

    def unsubscribe(self, topic: str) -> None:
        """See Link."""
        if topic in self.topics:
            self.topics.remove(topic)

    def offer(self, topic: str, payload: bytes) -> None:
        """Deliver a message from the broker, if this link subscribed to its topic."""
        if any(matches(pattern, topic) for pattern in self.topics):
            self._arrive(topic, payload)

    def _arrive(self, topic: str, payload: bytes) -> None:
        if not self.up:
            self._held.append((topic, payload))
            return
        size = packet_bytes(topic, payload)
        start = max(self.broker.agenda.now, self._down_free)
        self._down_free = start + size / self.wire.down
        self._received += size
        self._later(self._down_free + self.wire.latency, Received(topic, payload))

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """See Link."""
        if not self.up:
            self._backlog.append((topic, payload, retain))
            return
        size = packet_bytes(topic, payload)
        start = max(self.broker.agenda.now, self._up_free)
        self._up_free = start + size / self.wire.up
        self._sent += size
        self.broker.agenda.at(self._up_free + self.wire.latency, lambda: self.broker.route(topic, payload, retain))

    def cut(self, seconds: float) -> None:
        """Cut the connection for some virtual `seconds`; what is published meanwhile is sent afterwards."""
        self.up = False
        self.deliver(Disconnected("cut by the simulator"))
        self.broker.agenda.at(self.broker.agenda.now + seconds, self._restore)

    def _restore(self) -> None:
        if self in self.broker.links:
            self.up = True
            backlog, self._backlog = self._backlog, []
            for message in backlog:
                self.publish(*message)
            self.deliver(Connected())
            held, self._held = self._held, []
            for topic, payload in held:
                self._arrive(topic, payload)

    def vanish(self) -> None:
        """End the link as if its program had crashed: nothing arrives any more, and the broker publishes its will."""
        self.close()
        if self.will is not None:
            self.broker.route(self.will.topic, self.will.payload, True)

    def receive(self, timeout: float) -> Event | None:
        """Return None at once: all events go to `deliver`."""
        return None

    def busy(self) -> bool:
        """See Link."""
        return bool(self._backlog) or self._up_free > self.broker.agenda.now

    def chunk_bytes(self) -> int:
        """See Link."""
        return CHUNK_BYTES

    def traffic(self) -> Traffic:
        """Return the bytes sent and received so far; the module's docstring says what is counted."""
        return Traffic(self._sent, self._received)

    def close(self) -> None:
        """See Link."""
        if self in self.broker.links:
            self.broker.links.remove(self)
