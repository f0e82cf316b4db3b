"""The broker for development: the one that answers is ours, whoever else takes ports meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from capabilities import requires
from ports import held_port

from aggregator import broker
from aggregator.broker import answers, dev_broker
from seedmask.errors import UserError

HOST = "127.0.0.1"
KINDS = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.requires(kind)) for kind in ("mosquitto", "iotcore")]
)


@pytest.fixture
def stranger() -> Iterator[int]:
    """Another program's port, which accepts connections."""
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        yield int(server.getsockname()[1])


@pytest.mark.broker
@KINDS
def test_a_free_port_is_found_and_given_back(kind: str) -> None:
    with dev_broker(kind=kind) as ours, dev_broker(kind=kind) as other:
        assert (ours.name, ours.host) == (kind, HOST)
        assert ours.port != other.port
        assert answers(HOST, ours.port)
    assert not answers(HOST, ours.port)


@pytest.mark.broker
@KINDS
def test_a_port_taken_in_the_meantime_is_left_for_another(
    kind: str, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, offered = broker._random_port, [stranger]
    monkeypatch.setattr(broker, "_random_port", lambda host: offered.pop() if offered else real(host))
    with dev_broker(kind=kind) as ours:
        assert ours.port != stranger
    assert not offered


@pytest.mark.broker
@pytest.mark.requires("mosquitto")
def test_a_stranger_who_answers_is_not_taken_for_our_broker(stranger: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it came between our look and the start of ours, which still runs when somebody answers."""
    real, ports, looks = broker._random_port, [stranger], []
    monkeypatch.setattr(broker, "_random_port", lambda host: ports.pop() if ports else real(host))

    def late(host: str, port: int) -> bool:
        looks.append(port)
        return answers(host, port) and looks.count(stranger) != 1

    monkeypatch.setattr(broker, "answers", late)
    with dev_broker(kind="mosquitto") as ours:
        assert ours.port != stranger
    assert looks.count(stranger) >= 1


@pytest.mark.broker
@pytest.mark.requires("proc")
def test_who_listens_is_known(stranger: int) -> None:
    assert broker._listens(os.getpid(), stranger) is True
    assert broker._listens(os.getppid(), stranger) is False
    with held_port() as port:
        assert broker._listens(os.getpid(), port) is None


@pytest.mark.broker
@KINDS
def test_a_port_that_was_asked_for_is_never_replaced(kind: str, stranger: int) -> None:
    expected = pytest.raises(UserError, match=f"port {stranger} on {HOST} is in use already")
    with expected, dev_broker(HOST, stranger, kind=kind):
        pass


@pytest.mark.broker
@KINDS
def test_a_held_port_serves_one_broker_after_the_other(kind: str) -> None:
    with held_port() as port:
        for _ in range(2):
            assert not answers(HOST, port)
            with dev_broker(HOST, port, kind=kind):
                assert answers(HOST, port)
        assert not answers(HOST, port)


@pytest.mark.broker
def test_a_broker_that_ends_at_once_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("mosquitto")
    monkeypatch.setattr(broker, "_MOSQUITTO", "listener {port} {host}\nno_such_setting true\n")
    log = tmp_path / "broker.log"
    with pytest.raises(UserError, match=r"mosquitto did not start on 127.0.0.1:\d+: .*no_such_setting"):
        with dev_broker(log=log, kind="mosquitto"):
            pass


def test_without_any_broker_program_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "available", lambda: None)
    with pytest.raises(UserError, match="apt install mosquitto"), contextlib.ExitStack() as stack:
        stack.enter_context(dev_broker())
