"""The MQTT link against a real Mosquitto: what paho would lose, repeat for ever or die of, this does not."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ports import held_port

from aggregator.broker import _path, answers
from seedmask.chunks import CHUNK_BYTES
from seedmask.errors import UserError
from seedmask.io.link import Connected, Disconnected, Event, Received, Refused, Will
from seedmask.io.mqtt import Broker, MqttLink

MOSQUITTO = shutil.which("mosquitto", path=_path())
pytestmark = [pytest.mark.broker, pytest.mark.requires("mosquitto")]
HOST = "127.0.0.1"

Start = Callable[[str], contextlib.AbstractContextManager[int]]


@contextlib.contextmanager
def mosquitto(folder: Path, settings: str = "allow_anonymous true\n", port: int | None = None) -> Iterator[int]:
    """A broker with extra `settings`; gives its port. Ends by SIGKILL, so that nothing is tidy."""
    if port is None:
        with held_port() as held, mosquitto(folder, settings, held):
            yield held
        return
    assert MOSQUITTO is not None
    path = folder / f"mosquitto-{port}.conf"
    path.write_text(f"listener {port} {HOST}\n{settings}")
    with open(folder / "mosquitto.log", "ab") as log:
        process = subprocess.Popen([MOSQUITTO, "-c", str(path)], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 10
        while not answers(HOST, port):
            assert process.poll() is None, (folder / "mosquitto.log").read_text()
            assert time.monotonic() < end, (folder / "mosquitto.log").read_text()
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def port() -> Iterator[int]:
    """For a broker that goes and comes again."""
    with held_port() as held:
        yield held


@pytest.fixture
def links() -> Iterator[Callable[..., MqttLink]]:
    made: list[MqttLink] = []

    def make(port: int, name: str, will: Will | None = None, **more: object) -> MqttLink:
        made.append(MqttLink(Broker(HOST, port, **more), name, will))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for link in made:
        link.close(0.5)


def wait_for(link: MqttLink, kind: type[Event], seconds: float = 10.0) -> Event:
    """The next event of a kind."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        event = link.receive(0.1)
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__} within {seconds} s")


def collect(link: MqttLink, n: int, seconds: float = 20.0) -> list[bytes]:
    """The payloads of the next `n` messages."""
    out: list[bytes] = []
    end = time.monotonic() + seconds
    while len(out) < n and time.monotonic() < end:
        event = link.receive(0.1)
        if isinstance(event, Received):
            out.append(event.payload)
    return out


def test_the_kernels_count_of_bytes_is_the_brokers_count(tmp_path: Path, links: Callable[..., MqttLink]) -> None:
    with mosquitto(tmp_path, "allow_anonymous true\nsys_interval 1\n") as port:
        sender, receiver = links(port, "sender"), links(port, "receiver")
        receiver.subscribe("x/#")
        wait_for(receiver, Connected)
        wait_for(sender, Connected)
        payloads = [os.urandom(40_000) for _ in range(10)]
        for payload in payloads:
            sender.publish("x/y", payload)
        sender.receive(0.5)
        assert collect(receiver, 10) == payloads
        sender.receive(0.5)
        sent = sender.traffic().sent + receiver.traffic().sent
        assert receiver.traffic().received > 400_000
        # Only now is somebody else connected; its own few bytes are all that may come on top.
        watcher = links(port, "watcher")
        watcher.subscribe("$SYS/broker/bytes/received")
        seen = 0
        end = time.monotonic() + 15
        while seen < sent and time.monotonic() < end:
            event = watcher.receive(0.2)
            if isinstance(event, Received):
                seen = int(event.payload)
        assert sent <= seen <= sent + 300


def test_messages_published_while_the_broker_is_away_arrive_in_order(
    tmp_path: Path, links: Callable[..., MqttLink], port: int
) -> None:
    with mosquitto(tmp_path, port=port):
        sender = links(port, "sender")
        wait_for(sender, Connected)
    assert isinstance(wait_for(sender, Disconnected), Disconnected)
    wanted = [b"%d" % i for i in range(30)]
    for payload in wanted:
        sender.publish("x/y", payload)
    with mosquitto(tmp_path, port=port):
        receiver = links(port, "receiver")
        receiver.subscribe("x/#")
        wait_for(receiver, Connected)
        receiver.receive(0.3)
        wait_for(sender, Connected)
        sender.receive(0.5)
        arrived: list[bytes] = []
        while len(arrived) < 30 and (got := collect(receiver, 1, 3)):
            arrived += got
            sender.receive(0.0)
        assert arrived == wanted


def test_subscriptions_and_retained_messages_survive_a_broker_that_forgot_everything(
    tmp_path: Path, links: Callable[..., MqttLink], port: int
) -> None:
    with mosquitto(tmp_path, port=port):
        receiver = links(port, "receiver")
        receiver.subscribe("x/#")
        wait_for(receiver, Connected)
    wait_for(receiver, Disconnected)
    with mosquitto(tmp_path, port=port):
        wait_for(receiver, Connected, 20)
        sender = links(port, "sender")
        wait_for(sender, Connected)
        sender.publish("x/kept", b"here", retain=True)
        sender.receive(0.2)
        assert collect(receiver, 1) == [b"here"]


def test_a_message_above_the_brokers_limit_is_refused_once_and_the_rest_go_on(
    tmp_path: Path, links: Callable[..., MqttLink]
) -> None:
    with mosquitto(tmp_path, "allow_anonymous true\nmax_packet_size 50000\n") as port:
        sender, receiver = links(port, "sender"), links(port, "receiver")
        receiver.subscribe("x/#")
        wait_for(receiver, Connected)
        wait_for(sender, Connected)
        assert sender.chunk_bytes() < 50_000 < CHUNK_BYTES
        sender.publish("x/large", bytes(60_000))
        sender.publish("x/small", b"ok")
        refused = wait_for(sender, Refused)
        assert isinstance(refused, Refused)
        assert refused.topic == "x/large"
        assert "60000 bytes" in refused.reason
        assert collect(receiver, 1) == [b"ok"]


def test_a_topic_we_may_not_write_is_reported_and_not_taken_for_sent(
    tmp_path: Path, links: Callable[..., MqttLink]
) -> None:
    (tmp_path / "acl").write_text("topic read #\ntopic write allowed/#\n")
    os.chmod(tmp_path / "acl", 0o644)
    os.chmod(tmp_path, 0o755)
    acl = tmp_path / "acl"
    with mosquitto(tmp_path, f"allow_anonymous true\nacl_file {acl}\nuser root\n") as port:
        sender = links(port, "sender")
        wait_for(sender, Connected)
        sender.publish("forbidden/x", b"no")
        refused = wait_for(sender, Refused)
        assert isinstance(refused, Refused)
        assert "Not authorized" in refused.reason


def test_a_will_is_spoken_when_we_vanish_and_not_when_we_leave(tmp_path: Path, links: Callable[..., MqttLink]) -> None:
    with mosquitto(tmp_path) as port:
        watcher = links(port, "watcher")
        watcher.subscribe("will/#")
        wait_for(watcher, Connected)
        tidy = MqttLink(Broker(HOST, port), "tidy", Will("will/tidy", b"gone"))
        wait_for(tidy, Connected)
        tidy.close()
        rude = MqttLink(Broker(HOST, port), "rude", Will("will/rude", b"gone"))
        wait_for(rude, Connected)
        # As if the power went: the socket ends without a word.
        rude._client.socket().shutdown(2)
        rude._client.loop_stop()
        event = wait_for(watcher, Received, 20)
        assert event == Received("will/rude", b"gone")


def test_no_broker_is_said_in_words(links: Callable[..., MqttLink]) -> None:
    with held_port() as port:
        event = wait_for(links(port, "alone"), Disconnected)
    assert isinstance(event, Disconnected)
    assert event.reason.startswith("no broker at 127.0.0.1:")
    assert "refused" in event.reason


def test_a_wrong_password_is_said_in_words(tmp_path: Path, links: Callable[..., MqttLink]) -> None:
    (tmp_path / "password").write_text("wrong\n")
    with mosquitto(tmp_path, "allow_anonymous false\n") as port:
        link = links(port, "guest", username="guest", password_file=tmp_path / "password")
        event = wait_for(link, Disconnected)
        assert isinstance(event, Disconnected)
        assert "Not authorized" in event.reason


def test_a_missing_password_file_is_the_users_error() -> None:
    with pytest.raises(UserError, match="cannot read the password file"):
        MqttLink(Broker(username="x", password_file=Path("/nowhere/password")), "x")


@pytest.mark.requires("openssl")
def test_tls_connects_with_our_authority_and_refuses_another(tmp_path: Path, links: Callable[..., MqttLink]) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    for name in ("ours", "other"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
                "-keyout", f"{name}.key", "-out", f"{name}.crt")  # fmt: skip
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=broker",
            "-keyout", "server.key", "-out", "server.csr")  # fmt: skip
    (tmp_path / "san").write_text(
        f"subjectAltName=IP:{HOST}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    )
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ours.crt", "-CAkey", "ours.key", "-CAcreateserial",
            "-days", "2", "-extfile", "san", "-out", "server.crt")  # fmt: skip
    files = f"cafile {tmp_path}/ours.crt\ncertfile {tmp_path}/server.crt\nkeyfile {tmp_path}/server.key\n"
    with mosquitto(tmp_path, f"allow_anonymous true\nuser root\n{files}") as port:
        good = links(port, "good", ca=tmp_path / "ours.crt")
        assert wait_for(good, Connected) == Connected()
        assert good.traffic().received > 500  # the handshake is on the wire too
        bad = links(port, "bad", ca=tmp_path / "other.crt")
        event = wait_for(bad, Disconnected)
        assert isinstance(event, Disconnected)
        assert "certificate verify failed" in event.reason.lower()
