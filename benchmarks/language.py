"""What large workflows cost: long histories, wide fan-outs, many parked runs over a restart. Run with `make bench`."""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import trio

from durablefuture_trio import QueryFailedError, activity, connect, durable_map, open_supervisor, workflow
from durablefuture_trio.client import Client


@activity
async def double(number: int) -> int:
    return 2 * number


@workflow
async def counted(count: int) -> int:
    """`count` steps one after the other: three events each."""
    total = 0
    for number in range(count):
        total += await double(number)
    return total


@workflow
async def fan(count: int) -> int:
    """`count` calls of one map."""
    return sum(await durable_map(double, range(count), concurrency=count))


@workflow
async def parked() -> str:
    """Waits for a signal, under a timer of a week."""
    news = workflow.signal_channel("go", type=str)
    with trio.move_on_after(7 * 86400):
        return await news.receive()
    return "nothing"


CONFIG = """\
[supervisor]
modules = ["language"]
drain_timeout = 10.0
[nats.embedded]
data_dir = "{directory}/data"
[log]
level = "warning"
[sandbox]
cached_workflows = 20000
"""


async def wide(directory: str) -> None:
    """Fan-outs, in a supervisor inside this program."""
    config = Path(directory) / "embedded.toml"
    config.write_text(f'[nats.embedded]\ndata_dir = "{directory}/embedded"\n[log]\nlevel = "warning"\n')
    async with open_supervisor(config, workflows=[fan, counted], activities=[double]) as supervisor:
        await supervisor.client.run(fan, 10)
        for count, rounds in ((200, 7), (10_000, 1)):
            took: list[float] = []
            for _ in range(rounds):
                began = time.perf_counter()
                await supervisor.client.run(fan, count)
                took.append(time.perf_counter() - began)
            print(f"fan-out of {count:<8,}           p50 {statistics.median(took) * 1e3:10.0f} ms")


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def family(pid: int) -> dict[str, float]:
    """Resident MiB of the supervisor and its children, by what they are."""
    sizes = {"supervisor": resident_mb(pid)}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().decode().replace("\0", " ")
        kind = next((it for it in ("sandbox", "activity_worker", "nats-server") if it in words), "other")
        sizes[kind] = sizes.get(kind, 0.0) + resident_mb(int(child))
    return sizes


class SupervisorProcess:
    """The command, as a user starts it."""

    def __init__(self, directory: str) -> None:
        config = Path(directory) / "supervisor.toml"
        config.write_text(CONFIG.format(directory=directory))
        self.config = config

    async def start(self) -> None:
        """Start it, and wait until its server can be found."""
        (self.config.parent / "data" / "server.json").unlink(missing_ok=True)
        self._spawn()
        while not (self.config.parent / "data" / "server.json").exists():  # noqa: ASYNC110 - another process writes it
            await trio.sleep(0.02)

    def _spawn(self) -> None:
        command = Path(sys.executable).with_name("durablefuture-supervisor")
        here = str(Path(__file__).parent)
        self.process = subprocess.Popen(
            [str(command), "--config", str(self.config)], env={**os.environ, "PYTHONPATH": here}
        )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


async def signal_all(client: Client, count: int) -> float:
    """Every run gets its signal; seconds until all have returned."""
    limit = trio.CapacityLimiter(200)

    async def one(number: int) -> None:
        async with limit:
            await client.handle(f"parked-{number}").signal("go", "home")
            assert await client.handle(f"parked-{number}", parked).result() == "home"

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    return time.perf_counter() - began


async def many(directory: str, count: int) -> None:
    """Parked runs: what they weigh, and how soon they run again after a SIGKILL of their supervisor."""
    supervisor = SupervisorProcess(directory)
    await supervisor.start()
    try:
        async with connect(config=supervisor.config) as client:
            limit = trio.CapacityLimiter(200)

            async def start(number: int) -> None:
                async with limit:
                    await client.start(parked, id=f"parked-{number}")

            empty = family(supervisor.process.pid)
            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(start, number)
            took = time.perf_counter() - began
            await trio.sleep(3)
            full = family(supervisor.process.pid)
            print(f"{count:,} runs started and parked in {took:.1f} s ({count / took:.0f}/s); MiB, empty and full:")
            print("  " + ", ".join(f"{kind} {empty.get(kind, 0):.0f} -> {size:.0f}" for kind, size in full.items()))
        supervisor.kill()
        began = time.perf_counter()
        await supervisor.start()
        async with connect(config=supervisor.config) as client:
            up = time.perf_counter() - began
            took = await signal_all(client, count)
            print(
                f"after SIGKILL: up in {up:.1f} s; every run loaded, replayed, signalled and returned in {took:.1f} s"
            )
    finally:
        supervisor.kill()


async def long_history(directory: str, steps: int) -> None:
    """A run of many events is loaded and replayed for a query after a restart."""
    supervisor = SupervisorProcess(directory)
    await supervisor.start()
    try:
        async with connect(config=supervisor.config) as client:
            assert await client.run(counted, steps, id="long") == steps * (steps - 1)
            events = (await client.handle("long").describe()).history_length
        supervisor.kill()
        await supervisor.start()
        async with connect(config=supervisor.config) as client:
            await client.run(counted, 1)  # by now the shards are owned
            began = time.perf_counter()
            with suppress(QueryFailedError):  # there is no such query: it is answered after the replay
                await client.handle("long").query("nothing")
            print(f"replay of {events:,} events, for a query: {(time.perf_counter() - began) * 1e3:.0f} ms")
    finally:
        supervisor.kill()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parked", type=int, default=10_000, help="runs of the restart (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3_334, help="steps of the long history (default %(default)s)")
    options = parser.parse_args()
    for part in (wide, lambda d: long_history(d, options.steps), lambda d: many(d, options.parked)):
        with tempfile.TemporaryDirectory(prefix="durablefuture-bench-") as directory:
            await part(directory)


if __name__ == "__main__":
    trio.run(main)
