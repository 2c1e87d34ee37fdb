"""How fast are durable steps, with every commit on disk before it counts? Run with `make bench`.

Prints, in one run: what the machine's disk and the bare server give, the latency of a step and of a whole workflow, the
throughput of many workflows at once, the load of a long history, and the requests of an idle supervisor with many
waiting clients.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from durablefuture_trio import Supervisor, activity, open_supervisor, workflow
from durablefuture_trio.nats_bridge.broker import NatsBroker
from durablefuture_trio.ports.frames import Loaded
from durablefuture_trio.protocol.loading import HistoryReader, load_state
from durablefuture_trio.protocol.subjects import Subjects

PAGE = b"x" * 400


@activity
async def add(total: int, number: int) -> int:
    return total + number


@workflow
async def steps(count: int) -> list[float]:
    """`count` steps one after the other."""
    total = 0
    for number in range(count):
        total = await add(total, number)
    return [total]


@workflow
async def fan(count: int) -> int:
    """`count` steps beside each other."""
    results: list[int] = []

    async def one(number: int) -> None:
        results.append(await add(number, 1))

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    return sum(results)


@workflow
async def waits() -> None:
    """Parked until it is terminated."""
    await trio.sleep(7 * 86400)


def fsync_rate(directory: str, seconds: float = 1.0) -> float:
    """Appends of 400 bytes with fsync per second, one after the other."""
    path = Path(directory) / "fsync.probe"
    with path.open("ab", buffering=0) as file:
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            file.write(PAGE)
            os.fsync(file.fileno())
            count += 1
    path.unlink()
    return count / seconds


@asynccontextmanager
async def supervised(directory: str, processes: int) -> AsyncIterator[Supervisor]:
    config = Path(directory) / "supervisor.toml"
    config.write_text(
        f"""
[nats.embedded]
data_dir = "{directory}/data"
[log]
level = "warning"
[[activity_pool]]
processes = {processes}
"""
    )
    async with open_supervisor(config, workflows=[steps, fan, waits], activities=[add]) as supervisor:
        yield supervisor


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


async def sequential(supervisor: Supervisor, rounds: int) -> None:
    client = supervisor.client
    for _ in range(5):
        await client.run(steps, 5)
    per_step = []
    for _ in range(rounds):
        ten = await timed(lambda: client.run(steps, 10))
        sixty = await timed(lambda: client.run(steps, 60))
        per_step.append((sixty - ten) / 50)
    print(f"sequential step                p50 {statistics.median(per_step) * 1e3:8.2f} ms")
    one = [await timed(lambda: client.run(steps, 1)) for _ in range(rounds * 20)]
    print(f"1-activity workflow            p50 {statistics.median(one) * 1e3:8.2f} ms")


async def throughput(supervisor: Supervisor, workflows: int, concurrent: int) -> None:
    client = supervisor.client
    left = iter(range(workflows))

    async def worker() -> None:
        for _ in left:
            await client.run(steps, 5)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(concurrent):
            nursery.start_soon(worker)
    took = time.perf_counter() - began
    rate = workflows / took
    print(f"5-step workflows, {concurrent} at once   {rate * 5:12.0f} steps/s ({rate:.0f} workflows/s)")


async def fan_out(supervisor: Supervisor, rounds: int) -> None:
    took = [await timed(lambda: supervisor.client.run(fan, 200)) for _ in range(rounds)]
    print(f"fan-out of 200                 p50 {statistics.median(took) * 1e3:8.1f} ms")


async def long_history(supervisor: Supervisor, commits: int) -> None:
    """What a new owner has to do before it can go on with a run of many commits."""
    await supervisor.client.run(steps, commits, id="long")
    broker, subjects = supervisor._broker, Subjects("default", 4)
    replay = supervisor._children.replay
    assert replay is not None
    reader = HistoryReader(broker, subjects)
    began = time.perf_counter()
    state = await load_state(reader, "long")
    loaded = time.perf_counter()
    assert state is not None
    answered = trio.Event()
    answers: list[object] = []

    def on_answer(answer: object) -> None:
        answers.append(answer)
        answered.set()

    async for chunk in reader.commits("long", state.first_n, state.tip_n):
        is_last = chunk[-1].n == state.tip_n
        bodies = tuple(item.body for item in chunk)
        replay.load(state.run_id, bodies, first=chunk[0].n == 1, last=is_last, on_answer=on_answer if is_last else None)
    await answered.wait()
    assert isinstance(answers[0], Loaded), answers
    events = state.last_event_id
    print(f"{state.tip_n} commits, {events} events: read and folded in {(loaded - began) * 1e3:.0f} ms,", end=" ")
    print(f"read again and replayed in {(time.perf_counter() - loaded) * 1e3:.0f} ms")


async def idle(supervisor: Supervisor, waiting: int, seconds: float) -> None:
    """What a supervisor asks of the server while nothing happens."""
    counted = {"append_soon": 0, "last": 0, "many": 0, "consumers": 0, "stream_state": 0}

    def counting(name: str, method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            counted[name] += 1
            return method(*args, **options)

        return call

    originals = {name: getattr(NatsBroker, name) for name in counted}
    async with trio.open_nursery() as nursery:
        for number in range(waiting):
            nursery.start_soon(partial(supervisor.client.run, waits, id=f"waits-{number}"))
        await trio.sleep(3)
        for name, method in originals.items():
            setattr(NatsBroker, name, counting(name, method))
        cpu = time.process_time()
        await trio.sleep(seconds)
        cpu = time.process_time() - cpu
        for name, method in originals.items():
            setattr(NatsBroker, name, method)
        nursery.cancel_scope.cancel()
    detail = ", ".join(f"{name} {number / seconds:.1f}" for name, number in counted.items() if number)
    print(f"idle, {waiting} clients waiting     {sum(counted.values()) / seconds:12.1f} requests/s ({detail})")
    print(f"  CPU of supervisor and clients {cpu / seconds * 100:11.2f} %")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--processes", type=int, default=1, help="activity processes")
    parser.add_argument("--only", default="", help="sequential, throughput, fan, history or idle")
    options = parser.parse_args()
    rounds = 2 if options.quick else 10
    with tempfile.TemporaryDirectory(prefix="durablefuture-bench-") as directory:
        print(f"fsync of this disk             {fsync_rate(directory):12.0f} /s")
        async with supervised(directory, options.processes) as supervisor:
            if options.only in ("", "sequential"):
                await sequential(supervisor, rounds)
            if options.only in ("", "throughput"):
                await throughput(supervisor, 200 if options.quick else 2000, 50)
            if options.only in ("", "fan"):
                await fan_out(supervisor, rounds)
            if options.only in ("", "history"):
                await long_history(supervisor, 500 if options.quick else 5000)
            if options.only in ("", "idle"):
                await idle(supervisor, 100, 6 if options.quick else 20)


if __name__ == "__main__":
    trio.run(main)
