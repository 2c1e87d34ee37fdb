"""What a publish through the bridge costs: latency, rate and CPU time of this process, beside the disk's own rate.

python benchmarks/bridge.py [--sync always|default] [--count 20000]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from durablefuture_trio.nats_bridge import ConnectOptions, NatsBroker, open_broker
from durablefuture_trio.ports.broker import Append, AppendOutcome, StreamSpec
from tests._support.nats_server import nats_server

BODY = os.urandom(200)
STREAMS = 4


def fsync_rate() -> float:
    """Appends of 512 bytes, each with its fsync, per second."""
    with tempfile.NamedTemporaryFile() as file:
        start, count = time.perf_counter(), 500
        for _ in range(count):
            file.write(b"x" * 512)
            file.flush()
            os.fsync(file.fileno())
        return count / (time.perf_counter() - start)


def subject(stream: int, number: int) -> str:
    return f"bench.{stream}.id.{number}"


async def sequential(broker: NatsBroker, count: int) -> None:
    times = []
    cpu = time.process_time()
    for number in range(count):
        start = time.perf_counter()
        await broker.append(Append(subject=subject(0, number), body=BODY, expect_last=0))
        times.append(time.perf_counter() - start)
    cpu = time.process_time() - cpu
    cuts = statistics.quantiles(times, n=100)
    print(f"sequential: p50 {cuts[49] * 1e3:.2f} ms, p99 {cuts[98] * 1e3:.2f} ms, {cpu / count * 1e6:.0f} us CPU each")


async def callbacks(broker: NatsBroker, count: int, in_flight: int) -> None:
    done = trio.Event()
    sent = answered = 0

    def send() -> None:
        nonlocal sent
        sent += 1
        broker.append_soon(
            Append(subject=subject(sent % STREAMS, 10_000_000 + sent), body=BODY, expect_last=0), on_outcome
        )

    def on_outcome(outcome: AppendOutcome) -> None:
        nonlocal answered
        assert isinstance(outcome, int), outcome
        answered += 1
        if sent < count:
            send()
        elif answered == count:
            done.set()

    for _ in range(in_flight):
        send()
    await done.wait()


async def awaits(broker: NatsBroker, count: int, in_flight: int) -> None:
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await broker.append(
                Append(subject=subject(number % STREAMS, 20_000_000 + number), body=BODY, expect_last=0)
            )

    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(worker)


async def reading(broker: NatsBroker, count: int) -> None:
    async with broker.open_reader("S0", "bench", "bench.0.>", ack_wait=None) as reader:
        got = 0
        while got < count:
            for delivery in await reader.receive():
                got += 1
                reader.ack(delivery)


async def measure(name: str, count: int, run: Callable[[], Awaitable[None]]) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    await run()
    cpu = time.process_time() - cpu
    rate = count / (time.perf_counter() - start)
    print(f"{name:<28} {rate:8.0f} /s   {cpu / count * 1e6:5.0f} us CPU each")


async def main(sync: str, count: int) -> None:
    print(f"disk: {fsync_rate():.0f} fsyncs/s, {os.cpu_count()} CPUs, sync_interval {sync}")
    async with nats_server(sync=sync) as server, open_broker(ConnectOptions(urls=(server.url,))) as broker:
        await broker.provision(
            [StreamSpec(name=f"S{number}", subjects=(f"bench.{number}.>",)) for number in range(STREAMS)]
        )
        await sequential(broker, 1000)
        for in_flight in (10, 100, 1000):
            await measure(f"callbacks, {in_flight} in flight", count, lambda n=in_flight: callbacks(broker, count, n))
            await broker.purge("S0", ">")
            for number in range(STREAMS):
                await broker.purge(f"S{number}", ">")
        await measure("awaiting, 100 in flight", count, lambda: awaits(broker, count, 100))
        state = await broker.stream_state("S0")
        assert state is not None
        await measure("reading and acknowledging", state.messages, lambda: reading(broker, state.messages))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sync", default="always")
    parser.add_argument("--count", type=int, default=20_000)
    arguments = parser.parse_args()
    trio.run(main, arguments.sync, arguments.count)
