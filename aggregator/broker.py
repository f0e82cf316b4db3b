"""MQTT broker for development: started for one run, on loopback, and stopped with it. Not for a fleet.

It is Mosquitto if that is on PATH; else the iotcore wheel (rumqttd), which has no access rules and forgets everything
when it stops; else an error says what to install. A fleet needs a Mosquitto of its own, with TLS.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from seedmask.errors import UserError
from seedmask.io.process import die_with_parent

# Mosquitto's defaults drop messages silently when queues are full; see PROTOCOL 8.
_MOSQUITTO = """\
listener {port} {host}
allow_anonymous true
max_queued_messages 0
max_inflight_messages 100
persistence false
log_type warning
log_type error
"""

# MQTT 5 only; ten segments of 10 MB hold what a demonstration leaves unread (rumqttd keeps a log per topic filter).
_RUMQTTD = """\
id = 0
[router]
id = 0
max_connections = 2000
max_outgoing_packet_count = 200
max_segment_size = 10485760
max_segment_count = 10
[v5.1]
name = "v5"
listen = "{host}:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 100
dynamic_filters = true
"""


# Each try takes a port that was free a moment before; losing several in a row is next to impossible.
_TRIES = 5
_SECONDS = 10.0


@dataclass(frozen=True)
class DevBroker:
    """A running broker: the program's name, and where it listens."""

    name: str
    host: str
    port: int


class _NotOursError(Exception):
    """Another program has the port, or ours ended before it had it."""


def answers(host: str, port: int) -> bool:
    """True if a program accepts connections at `host` and `port`, asked for half a second."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), 0.5):
        return True
    return False


def available() -> str | None:
    """Return the name of the broker that `dev_broker` would start, None if there is none."""
    if shutil.which("mosquitto", path=_path()):
        return "mosquitto"
    return "iotcore" if importlib.util.find_spec("iotcore") else None


def _path() -> str:
    # Debian puts it into sbin, which is not on every user's PATH.
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"])


@contextlib.contextmanager
def dev_broker(
    host: str = "127.0.0.1", port: int | None = None, log: Path | None = None, kind: str | None = None
) -> Iterator[DevBroker]:
    """Run a broker until the block ends: program `kind`, or the first that is installed.

    Without `port` it listens on a free one, and tries another if a different program takes that first. On Linux it
    makes sure that no other program answers in its place. The broker's output is appended to `log`. Raises UserError if
    no broker is installed, or if `port` is taken.
    """
    kind = kind or available()
    if kind is None:
        raise UserError(
            "no MQTT broker on this machine. Install one of:\n"
            "    apt install mosquitto             (Debian, Ubuntu, Raspberry Pi OS; brew install mosquitto on macOS)\n"
            "    pip install 'seedmask[broker]'    (iotcore, for trying things out)"
        )
    start = _mosquitto if kind == "mosquitto" else _iotcore
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seedmask-broker-")))
        for last in [False] * (_TRIES - 1) + [True]:
            found = _random_port(host) if port is None else port
            with contextlib.ExitStack() as attempt:
                try:
                    if answers(host, found):
                        raise _NotOursError
                    _await(start(attempt, folder, host, found, log), host, found)
                except _NotOursError:
                    if port is None and not last:
                        continue
                    if answers(host, found):
                        raise UserError(
                            f"port {found} on {host} is in use already; choose another or use the broker that is there"
                        ) from None
                    raise UserError(f"{kind} did not start on {host}:{found}{_tail(log)}") from None
                stack.push(attempt.pop_all())
            break
        yield DevBroker(kind, host, found)


def _random_port(host: str) -> int:
    # Free now, and perhaps not a moment later: only a broker that was seen to have it may be given out.
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _await(pid: Callable[[], int | None], host: str, port: int) -> None:
    """Wait until our broker listens.

    Raises _NotOursError if another program listens there, or if ours has ended or takes too long.
    """
    until = time.monotonic() + _SECONDS
    while (ours := pid()) is not None and time.monotonic() < until:
        if answers(host, port):
            if _listens(ours, port) is False:
                break
            return
        time.sleep(0.05)
    raise _NotOursError


def _listens(pid: int, port: int) -> bool | None:
    """Return whether process `pid` has the listening IPv4 socket at `port`; None where Linux's /proc does not tell."""
    try:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        handles = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return None
    holds = set()
    for handle in handles:
        with contextlib.suppress(OSError):  # closed in the meantime
            holds.add(os.readlink(handle))
    inodes = [row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
    return any(f"socket:[{inode}]" in holds for inode in inodes) if inodes else None


def _mosquitto(
    stack: contextlib.ExitStack, folder: Path, host: str, port: int, log: Path | None
) -> Callable[[], int | None]:
    """Start Mosquitto; return a function that gives its process id, or None once it has ended."""
    program = shutil.which("mosquitto", path=_path())
    assert program is not None
    settings = folder / "mosquitto.conf"
    text = _MOSQUITTO.format(host=host, port=port)
    if os.geteuid() == 0:
        # As root it would change to a user of its own, and a change of user undoes die_with_parent.
        text += "user root\n"
    settings.write_text(text)
    output = stack.enter_context(open(log or os.devnull, "ab"))
    # A session of its own: Ctrl-C at the terminal is ours, the broker must outlive our goodbye messages.
    process = subprocess.Popen(
        [program, "-c", str(settings)],
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )

    def stop() -> None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)
    return lambda: process.pid if process.poll() is None else None


def _iotcore(
    stack: contextlib.ExitStack, folder: Path, host: str, port: int, log: Path | None
) -> Callable[[], int | None]:
    """Start rumqttd; return what `_mosquitto` returns. It writes no log."""
    from iotcore import Broker  # an optional package

    settings = folder / "rumqttd.toml"
    settings.write_text(_RUMQTTD.format(host=host, port=port))
    broker = Broker(config_path=str(settings))
    try:
        stack.enter_context(broker)
    except (OSError, RuntimeError):  # the port is taken, or its process ended
        raise _NotOursError from None

    def pid() -> int | None:
        process = broker._process
        return process.pid if broker.is_running and process is not None else None

    return pid


def _tail(log: Path | None) -> str:
    if log is None or not log.exists():
        return ""
    lines = log.read_text(errors="replace").splitlines()[-3:]
    return ": " + " / ".join(lines) if lines else ""
