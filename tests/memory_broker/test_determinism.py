"""The same seed gives the same trace: in one process, and in another with other hashes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from random import Random

from durablefuture_trio.memory_broker import FaultPlan, MemoryBroker, MemoryReader, MemoryServer, VirtualScheduler
from durablefuture_trio.ports.broker import Append, AppendOutcome, BrokerError, NoAnswer, ReaderLost, Schedule
from tests._support.broker_servers import STREAMS


def chaos() -> FaultPlan:
    """Everything at once."""
    return FaultPlan(
        latency=(0.0, 0.01),
        store_delay=(0.0, 0.005),
        late_append=0.05,
        dropped_append=0.05,
        lost_puback=0.05,
        delayed_answer=0.1,
        lost_ack=0.1,
        late_ack=0.1,
        lost_delivery=0.02,
        late_fire=0.5,
        racing_fire=0.3,
        double_fire=0.2,
        lands_after_link_loss=0.5,
        dead_link_for=(0.0, 1.0),
        forgotten_ack=0.3,
        forgotten_delivery=0.3,
    )


class Client:
    """Publishes, reads and acknowledges at random; after a loss it reads on under the next name."""

    def __init__(self, server: MemoryServer, name: str, rng: Random) -> None:
        self.server = server
        self.rng = rng
        self.broker: MemoryBroker = server.connect(name)
        self.reader: MemoryReader | None = None
        self.heard: list[str] = []
        self.epoch = 0

    def step(self) -> None:
        rng, broker, number = self.rng, self.broker, self.rng.randint(0, 9)
        append = Append(subject=f"w.{number}.x", body=b"%d" % number)
        if number < 3:
            append = Append(subject=f"h.{number}.{rng.randint(0, 30)}", expect_last=0)
        elif number == 3:
            due = self.server.scheduler.now() + rng.random() * 3
            append = Append(subject=f"s.{rng.randint(0, 3)}", schedule=Schedule(due=due, target=f"w.{number}.fire"))
        broker.append_soon(append, self.on_outcome)
        if self.reader is None:
            self.open()

    def open(self) -> None:
        for state in self.server.consumer_states("W"):
            self.server.delete_consumer("W", state.name)
        self.epoch += 1
        try:
            self.reader = self.broker.attach_reader(
                "W", f"own-{self.broker.link.name}-{self.epoch}", "w.>", ack_wait=None, on_ready=self.on_ready
            )
        except NoAnswer:
            self.heard.append("no reader")

    def on_outcome(self, outcome: AppendOutcome) -> None:
        self.heard.append(type(outcome).__name__ if isinstance(outcome, BrokerError) else str(outcome))

    def on_ready(self) -> None:
        if self.reader is None:
            return
        try:
            for delivery in self.reader.take():
                self.heard.append(f"{delivery.subject} {delivery.seq} {delivery.delivered}")
                if self.rng.random() < 0.8:
                    self.reader.ack(delivery)
        except ReaderLost as error:
            self.heard.append(error.reason)
            self.reader = None


def run(seed: int) -> str:
    """A digest of everything two clients heard and the server did in a stormy minute."""
    rng = Random(seed)
    scheduler = VirtualScheduler()
    server = MemoryServer(scheduler, rng=rng, faults=chaos())
    server.provision(STREAMS)
    trace: list[object] = []
    server.on_trace = lambda *entry: trace.append(entry)
    clients = [Client(server, "A", rng), Client(server, "B", rng)]
    for second in range(60):
        for _ in range(5):
            scheduler.call_at(scheduler.now() + rng.random(), rng.choice(clients).step)
        if second % 10 == 4:
            scheduler.call_at(scheduler.now() + rng.random(), partial(rng.choice(clients).broker.link.drop, 1.5))
        if second % 20 == 9:
            scheduler.call_at(scheduler.now() + rng.random(), server.restart)
        if second == 30:
            server.pause()
            scheduler.call_at(scheduler.now() + 7, server.resume)
        scheduler.run_for(1.0)
    assert all(len(client.heard) > 50 for client in clients)
    assert len(trace) > 200
    text = repr((trace, [client.heard for client in clients], server.stream_state("W")))
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    assert run(1) == run(1)
    assert run(1) != run(2)


def test_the_trace_does_not_depend_on_hashes() -> None:
    root = Path(__file__).parents[2]
    code = "import importlib.util as u, sys; s = u.spec_from_file_location('d', sys.argv[1]); " + (
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.run(5))"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, __file__],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        for seed in ("0", "1", "4242")
    }
    assert digests == {run(5)}
