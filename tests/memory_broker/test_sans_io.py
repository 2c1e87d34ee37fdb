"""Without an event loop: callbacks and a clock moved by hand, as a simulator uses it."""

from __future__ import annotations

import pytest

from durablefuture_trio.memory_broker import FaultPlan, MemoryReader, MemoryServer, VirtualScheduler
from durablefuture_trio.ports.broker import Append, AppendOutcome, ConsumerConflict, NoAnswer, ReaderLost, Schedule


class Inbox:
    """Takes what a reader has whenever it says so."""

    def __init__(self) -> None:
        self.reader: MemoryReader | None = None
        self.subjects: list[str] = []
        self.lost: str | None = None

    def on_ready(self) -> None:
        assert self.reader is not None
        try:
            for delivery in self.reader.take():
                self.subjects.append(delivery.subject)
                self.reader.ack(delivery)
        except ReaderLost as error:
            self.lost = error.reason


def attach(server: MemoryServer, name: str = "A") -> Inbox:
    inbox = Inbox()
    inbox.reader = server.connect(name).attach_reader(
        "W", "own-1", "w.>", ack_wait=None, on_ready=inbox.on_ready, credit_bytes=100
    )
    return inbox


def test_a_publish_is_answered_by_the_schedulers_next_call(
    plain_server: MemoryServer, scheduler: VirtualScheduler
) -> None:
    outcomes: list[AppendOutcome] = []
    plain_server.connect("A").append_soon(Append(subject="h.1", expect_last=0), outcomes.append)
    assert outcomes == []
    assert scheduler.run_next()
    assert outcomes == [1]
    assert not scheduler.run_next()


def test_silence_is_answered_when_virtual_time_has_passed(
    plain_server: MemoryServer, scheduler: VirtualScheduler
) -> None:
    outcomes: list[AppendOutcome] = []
    broker = plain_server.connect("A", faults=FaultPlan(dropped_append=1.0), answer_timeout=5.0)
    broker.append_soon(Append(subject="h.1"), outcomes.append)
    scheduler.run_for(4.9)
    assert outcomes == []
    scheduler.run_for(0.2)
    assert [type(outcome) for outcome in outcomes] == [NoAnswer]


def test_an_attached_reader_calls_when_something_has_come(
    plain_server: MemoryServer, scheduler: VirtualScheduler
) -> None:
    inbox = attach(plain_server)
    broker = plain_server.connect("B")
    for n in range(100):
        broker.append_soon(Append(subject=f"w.{n}", body=b"x" * 30), lambda _: None)
        assert len(inbox.subjects) <= n
    scheduler.run_for(1.0)
    assert inbox.subjects == [f"w.{n}" for n in range(100)]
    state = plain_server.stream_state("W")
    assert state is not None
    assert state.messages == 0


def test_an_attached_reader_hears_fires_in_virtual_time(
    plain_server: MemoryServer, scheduler: VirtualScheduler
) -> None:
    inbox = attach(plain_server)
    schedule = Schedule(due=scheduler.now() + 30 * 24 * 3600, target="w.x.timer")
    plain_server.connect("B").append_soon(Append(subject="s.x", schedule=schedule), lambda _: None)
    scheduler.run_for(29 * 24 * 3600)
    assert inbox.subjects == []
    scheduler.run_for(2 * 24 * 3600)
    assert inbox.subjects == ["w.x.timer"]


def test_an_attached_reader_hears_that_it_is_lost(plain_server: MemoryServer, scheduler: VirtualScheduler) -> None:
    inbox = attach(plain_server)
    assert plain_server.delete_consumer("W", "own-1")
    scheduler.run_for(1.0)
    assert inbox.lost == "deleted"


def test_attaching_raises_what_opening_raises(plain_server: MemoryServer) -> None:
    attach(plain_server)
    broker = plain_server.connect("B")
    with pytest.raises(ConsumerConflict):
        broker.attach_reader("W", "own-2", "w.1.>", ack_wait=None, on_ready=lambda: None)
    broker.link.drop()
    with pytest.raises(NoAnswer):
        broker.attach_reader("W", "own-1", "w.>", ack_wait=None, on_ready=lambda: None)


def test_a_dead_process_hears_nothing_and_its_consumer_stays(
    plain_server: MemoryServer, scheduler: VirtualScheduler
) -> None:
    dying = plain_server.connect("A")
    called: list[str] = []
    dying.attach_reader("W", "own-1", "w.>", ack_wait=None, on_ready=lambda: called.append("ready"))
    dying.append_soon(Append(subject="h.1"), lambda outcome: called.append(str(outcome)))
    dying.kill()
    plain_server.connect("B").append_soon(Append(subject="w.1"), lambda _: None)
    scheduler.run_for(60)
    assert called == []
    [state] = plain_server.consumer_states("W")
    assert (state.name, state.ack_pending, state.pending) == ("own-1", 0, 1)
    assert [link.name for link in plain_server.links] == ["B"]


def test_everything_that_happens_can_be_traced(plain_server: MemoryServer, scheduler: VirtualScheduler) -> None:
    trace: list[tuple[float, str, str, str]] = []
    plain_server.on_trace = lambda *entry: trace.append(entry)
    inbox = attach(plain_server)
    plain_server.connect("B").append_soon(Append(subject="w.1"), lambda _: None)
    scheduler.run_for(1)
    plain_server.kill()
    assert inbox.subjects == ["w.1"]
    assert [entry[1:] for entry in trace] == [
        ("server", "consumer created", "W own-1"),
        ("B", "stored", "w.1"),
        ("own-1", "acked", "w.1"),
        ("server", "kill", ""),
        ("A", "link down", ""),
        ("A", "reader lost: link", "own-1"),
        ("B", "link down", ""),
    ]
