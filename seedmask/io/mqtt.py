"""Link over MQTT 5; the only module that imports paho.

paho's callbacks run in its network thread; all they do here is put an event into a queue. State belongs to the thread
that calls `receive`. So it needs no lock, nothing blocks inside a callback, and an exception of ours cannot end the
network thread. paho's own outgoing queue is not used: it is lost with the process, ignores the broker's limits after a
reconnection, and resends a packet that is too large for ever. This module keeps a window of messages in flight itself.
"""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import ssl
import struct
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from seedmask.chunks import CHUNK_BYTES
from seedmask.errors import UserError
from seedmask.io.link import Broker, Connected, Disconnected, Event, Received, Refused, Traffic, Will

WINDOW: Final = 8
"""Messages in flight: window x chunk / slowest rate must stay below the keepalive (60 s: a rate above 8 kB/s)."""
SESSION_SECONDS: Final = 24 * 3600
_TOO_LARGE: Final = 0x95
_QOS1: Final = SubscribeOptions(qos=1)
_QOS1_IF_NEW: Final = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
_HEADROOM: Final = 512  # topic, properties and our frame around a chunk


# Events from the network thread to the caller's thread.
@dataclass(frozen=True)
class _Up:
    session: bool
    packet_limit: int
    window: int


@dataclass(frozen=True)
class _Acked:
    mid: int
    code: int
    text: str


@dataclass(frozen=True)
class _Subscribed:
    codes: tuple[int, ...]


@dataclass(frozen=True)
class _Down:
    code: int
    text: str


_Happened: TypeAlias = _Up | _Acked | _Subscribed | _Down | Received | Refused


@dataclass(frozen=True)
class _Outgoing:
    topic: str
    payload: bytes
    retain: bool


class MqttLink:
    """Link to an MQTT broker that reconnects by itself. Not safe to share between threads."""

    def __init__(self, broker: Broker, client_id: str, will: Will | None = None) -> None:
        """Start connecting in the background. Raises UserError where files or passwords cannot be read."""
        self._broker = broker
        self._events: queue.SimpleQueue[_Happened] = queue.SimpleQueue()
        self._waiting: deque[_Outgoing] = deque()
        self._flying: dict[int, _Outgoing] = {}
        self._topics: list[str] = []
        self._up = False
        self._ever_up = False
        self._awaited: tuple[str, ...] = ()  # the subscriptions that a new connection waits for
        self._silent_drops = 0  # connections that ended before the broker answered
        self._window = WINDOW
        self._packet_limit = 1 << 28
        self._closed = Traffic(0, 0)
        self._socket: Any = None
        self._socket_lock = threading.Lock()
        self._client = self._make(client_id, will)
        self._start()

    def _make(self, client_id: str, will: Will | None) -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
        client.suppress_exceptions = True
        client.max_inflight_messages_set(WINDOW)
        # Random delays: otherwise all devices of a fleet would reconnect to a restarted broker at the same instant.
        client.reconnect_delay_set(random.uniform(1, 2), random.uniform(30, 60))  # type: ignore[arg-type]
        if will is not None:
            delayed = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
            delayed.WillDelayInterval = 5  # a quick reconnection is not a departure
            client.will_set(will.topic, will.payload, qos=1, retain=True, properties=delayed)
        if self._broker.username is not None:
            client.username_pw_set(self._broker.username, _password(self._broker))
        if self._broker.tls or self._broker.ca or self._broker.cert:
            client.tls_set_context(_tls(self._broker))
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        return client

    def _start(self) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_SECONDS
        properties.ReceiveMaximum = 64
        self._client.connect_async(
            self._broker.host,
            self._broker.port,
            self._broker.keepalive,
            clean_start=False,
            properties=properties,
        )
        before = {thread.ident for thread in threading.enumerate()}
        self._client.loop_start()
        self._thread = next(thread for thread in threading.enumerate() if thread.ident not in before)

    # --- callbacks: paho's thread; they only enqueue ---

    def _on_connect(self, client: Any, userdata: Any, flags: Any, code: Any, properties: Any) -> None:
        if code.is_failure:
            self._events.put(_Down(code.value, f"the broker refused the connection: {code}"))
            return
        limit = getattr(properties, "MaximumPacketSize", 1 << 28)
        window = getattr(properties, "ReceiveMaximum", 65535)
        self._events.put(_Up(flags.session_present, limit, min(WINDOW, window)))

    def _on_connect_fail(self, client: Any, userdata: Any) -> None:
        error = sys.exc_info()[1]  # paho calls this inside its `except`
        where = f"{self._broker.host}:{self._broker.port}"
        self._events.put(_Down(0, f"no broker at {where}: {error or 'no answer'}"))

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, code: Any, properties: Any) -> None:
        self._events.put(_Down(code.value, f"connection lost: {code}"))

    def _on_message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        self._events.put(Received(message.topic, bytes(message.payload)))

    def _on_publish(self, client: Any, userdata: Any, mid: int, code: Any, properties: Any) -> None:
        self._events.put(_Acked(mid, code.value, str(code)))

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, codes: Any, properties: Any) -> None:
        self._events.put(_Subscribed(tuple(code.value for code in codes)))

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:
        with self._socket_lock:
            self._socket = sock

    def _on_socket_close(self, client: Any, userdata: Any, sock: Any) -> None:
        with self._socket_lock:
            last = _counted(sock)
            self._closed = Traffic(self._closed.sent + last.sent, self._closed.received + last.received)
            self._socket = None

    # --- the caller's thread ---

    def subscribe(self, topic: str) -> None:
        """Subscribe to a topic filter, now and after every reconnection."""
        if topic not in self._topics:
            self._topics.append(topic)
            if self._up:
                self._client.subscribe(topic, options=_QOS1)

    def unsubscribe(self, topic: str) -> None:
        """Cancel the subscription to a topic filter."""
        if topic in self._topics:
            self._topics.remove(topic)
            if self._up:
                self._client.unsubscribe(topic)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Queue a message for sending; an empty retained one clears the topic."""
        self._waiting.append(_Outgoing(topic, payload, retain))
        self._pump()

    def busy(self) -> bool:
        """Return True while a published message has not been acknowledged by the broker."""
        return bool(self._waiting or self._flying)

    def chunk_bytes(self) -> int:
        """Return the size of a chunk in bytes that fits a packet here: at least 1024, at most CHUNK_BYTES."""
        return max(1024, min(CHUNK_BYTES, self._packet_limit - _HEADROOM))

    def receive(self, timeout: float) -> Event | None:
        """Return the next event, or None if there is none within `timeout` seconds.

        Raises RuntimeError if paho's network thread has ended, from which a link cannot recover.
        """
        until = time.monotonic() + timeout
        while True:
            try:
                event = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                if not self._thread.is_alive():
                    raise RuntimeError("the MQTT network thread has ended") from None
                return None
            seen = self._handle(event)
            if seen is not None:
                return seen

    def _handle(self, event: _Happened) -> Event | None:
        if isinstance(event, Received | Refused):
            return event
        if isinstance(event, _Acked):
            message = self._flying.pop(event.mid, None)
            self._pump()
            if message is not None and event.code >= 0x80:
                return Refused(message.topic, event.text)
            return None
        if isinstance(event, _Up):
            self._packet_limit, self._window = event.packet_limit, event.window
            # Always subscribe again: a topic may be new since the connection was lost, and after a restart the broker
            # has no session. Retained messages arrive again, unless this process received them in the same session.
            kept = event.session and self._ever_up
            self._up = self._ever_up = True
            self._silent_drops = 0
            self._pump()
            if not self._topics:
                return Connected()
            # Connected promises that subscriptions are active, so it waits for the broker's acknowledgement.
            options = _QOS1_IF_NEW if kept else _QOS1
            self._awaited = tuple(self._topics)
            self._client.subscribe([(topic, options) for topic in self._topics])
            return None
        if isinstance(event, _Subscribed):
            awaited, self._awaited = self._awaited, ()
            for topic, code in zip(awaited, event.codes, strict=False):
                if code >= 0x80:
                    self._events.put(Refused(topic, f"no subscription: reason code {code}"))
            return Connected() if awaited else None
        return self._down(event)

    def _down(self, event: _Down) -> Event | None:
        was_up, self._up = self._up, False
        self._awaited = ()
        self._client.drop_out_messages()
        again = [self._flying[mid] for mid in self._flying]
        self._flying.clear()
        if event.code == _TOO_LARGE and again:
            # The broker refused the largest message; sending it again would only end the connection again.
            largest = max(again, key=lambda message: len(message.payload))
            again.remove(largest)
            self._waiting.extendleft(reversed(again))
            return Refused(largest.topic, f"the broker does not take {len(largest.payload)} bytes")
        self._waiting.extendleft(reversed(again))
        if not was_up:
            self._silent_drops += 1
            if self._silent_drops >= 2 and self._broker.cert and event.text.startswith("connection lost"):
                return Disconnected(f"{event.text} (before any answer: does the broker accept our certificate?)")
        return Disconnected(event.text)

    def _pump(self) -> None:
        while self._up and self._waiting and len(self._flying) < self._window:
            message = self._waiting.popleft()
            if len(message.payload) + len(message.topic) + 16 > self._packet_limit:
                limit = f"the broker takes packets of {self._packet_limit} bytes at most"
                self._events.put(Refused(message.topic, f"{len(message.payload)} bytes; {limit}"))
                continue
            info = self._client.publish(message.topic, message.payload, qos=1, retain=message.retain)
            self._flying[info.mid] = message

    def traffic(self) -> Traffic:
        """Return the bytes that TCP delivered, as the kernel counts them (TLS and MQTT framing included)."""
        with self._socket_lock:
            now = _counted(self._socket) if self._socket is not None else Traffic(0, 0)
            return Traffic(self._closed.sent + now.sent, self._closed.received + now.received)

    def close(self, patience: float = 3.0) -> None:
        """Send waiting messages for up to `patience` seconds, then disconnect; the last will is not published."""
        until = time.monotonic() + patience
        while self._up and (self._waiting or self._flying) and time.monotonic() < until:
            self.receive(0.05)
        self._client.disconnect()
        # loop_stop() may block for twice the keepalive if the broker hangs, so it runs in a thread of its own.
        stopper = threading.Thread(target=self._client.loop_stop, daemon=True)
        stopper.start()
        stopper.join(patience)


def _counted(sock: Any) -> Traffic:
    """Return the bytes acknowledged and received on a TCP socket; zeros where the kernel does not count them.

    They are tcpi_bytes_acked and tcpi_bytes_received of linux/tcp.h.
    """
    with contextlib.suppress(OSError, AttributeError, struct.error):
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
        acked, received = struct.unpack_from("=QQ", info, 120)
        return Traffic(acked, received)
    return Traffic(0, 0)


def check(broker: Broker) -> None:
    """Read the password and the TLS files that `broker` names, without connecting. Raises UserError."""
    _password(broker)
    if broker.tls or broker.ca or broker.cert:
        _tls(broker)


def _password(broker: Broker) -> str | None:
    if broker.password_file is None:
        return None
    try:
        return broker.password_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"cannot read the password file {broker.password_file}: {error.strerror}") from None


def _tls(broker: Broker) -> ssl.SSLContext:
    for path in (broker.ca, broker.cert, broker.key):
        if path is not None and not path.is_file():
            raise UserError(f"the broker settings name {path}, which is not a file")
    try:
        context = ssl.create_default_context(cafile=str(broker.ca) if broker.ca else None)
        if broker.cert is not None:
            context.load_cert_chain(str(broker.cert), str(broker.key))
    except OSError as error:  # ssl.SSLError is one
        raise UserError(f"cannot use the TLS files of the broker settings: {error}") from None
    return context
