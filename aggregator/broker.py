"""A broker for development: started for one run, on loopback, gone afterwards. Not for a fleet.

Mosquitto if it is on PATH; else the iotcore wheel (rumqttd), which has no access rules and forgets everything when it
stops; else an error that says what to install. A fleet wants a real Mosquitto with TLS.
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
from collections.abc import Iterator
from pathlib import Path

from seedmask.errors import UserError
from seedmask.io.process import die_with_parent

# Defaults that would lose messages in silence are lifted; see PROTOCOL 8.
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


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def answers(host: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), 0.5):
        return True
    return False


def available() -> str | None:
    """The broker that `dev_broker` would start, None if there is none."""
    if shutil.which("mosquitto", path=_path()):
        return "mosquitto"
    return "iotcore" if importlib.util.find_spec("iotcore") else None


def _path() -> str:
    # Debian puts it into sbin, which is not on every user's PATH.
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"])


@contextlib.contextmanager
def dev_broker(host: str, port: int, log: Path | None = None, kind: str | None = None) -> Iterator[str]:
    """Run a broker (`kind`, or the first there is); gives its name. UserError: there is none, or the port is taken."""
    kind = kind or available()
    if kind is None:
        raise UserError(
            "no MQTT broker on this machine. Install one of:\n"
            "    apt install mosquitto             (Debian, Ubuntu, Raspberry Pi OS; brew install mosquitto on macOS)\n"
            "    pip install 'seedmask[broker]'    (iotcore, for trying things out)"
        )
    if answers(host, port):
        raise UserError(f"port {port} on {host} is in use already; choose another or use the broker that is there")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seedmask-broker-")))
        if kind == "mosquitto":
            _mosquitto(stack, folder, host, port, log)
        else:
            _iotcore(stack, folder, host, port)
        until = time.monotonic() + 10
        while not answers(host, port):
            if time.monotonic() > until:
                raise UserError(f"{kind} did not start on {host}:{port}{_tail(log)}")
            time.sleep(0.05)
        yield kind


def _mosquitto(stack: contextlib.ExitStack, folder: Path, host: str, port: int, log: Path | None) -> None:
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


def _iotcore(stack: contextlib.ExitStack, folder: Path, host: str, port: int) -> None:
    from iotcore import Broker  # an optional package

    settings = folder / "rumqttd.toml"
    settings.write_text(_RUMQTTD.format(host=host, port=port))
    stack.enter_context(Broker(config_path=str(settings)))


def _tail(log: Path | None) -> str:
    if log is None or not log.exists():
        return ""
    lines = log.read_text(errors="replace").splitlines()[-3:]
    return ": " + " / ".join(lines) if lines else ""
