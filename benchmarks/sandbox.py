"""What a workflow costs in the replay process: ``python benchmarks/sandbox.py``.

Everything runs in this process, as frames through a `ReplayHost`, guards on. The last lines go through a real child.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import trio

from durablefuture_trio import codec
from durablefuture_trio.authoring._activity import activity
from durablefuture_trio.authoring._workflow import workflow
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.history.commit import Commit, encode_commit
from durablefuture_trio.history.events import (
    ActivityCompleted,
    ActivityScheduled,
    ActivityStarted,
    Event,
    WorkflowStarted,
)
from durablefuture_trio.history.options import ActivityOptionsRecord
from durablefuture_trio.ports.frames import Activate, Activated, Loaded, LoadRun
from durablefuture_trio.sandbox._host import ReplayHost

START = 1_800_000_000.0
RESULT = codec.encode_value(5)


@activity
async def add(left: int, right: int) -> int:
    return left + right


@workflow
async def steps(count: int) -> int:
    total = 0
    for number in range(count):
        total = await add(total, number)
    return total


@workflow
async def fan_out(count: int) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(add, number, number)


def host() -> ReplayHost:
    return ReplayHost(Registry.of([steps, fan_out]).workflows, cached_workflows=10**9)


def started(run_id: str, name: str, count: int) -> Activate:
    stimulus = WorkflowStarted(
        id=1,
        at=START,
        workflow_id=run_id,
        run_id=run_id,
        workflow=name,
        arguments=codec.encode_arguments((count,)),
    )
    return Activate(exchange=1, run_id=run_id, activation=1, stimulus=stimulus)


def completed(run_id: str, call: int) -> Activate:
    stimulus = ActivityCompleted(id=4 * call, at=START + call, activity_id=call, attempt=1, result=RESULT)
    return Activate(exchange=1, run_id=run_id, activation=call + 1, stimulus=stimulus)


def timed(work: Callable[[], object], times: int) -> float:
    """Microseconds of CPU for each of `times`."""
    gc.collect()
    gc.disable()
    began = time.process_time()
    work()
    took = time.process_time() - began
    gc.enable()
    return took / times * 1e6


def fresh_runs(count: int) -> float:
    replay = host()
    frames = [started(f"run-{number}", "steps", 1) for number in range(count)]
    took = timed(lambda: [replay.handle(frame) for frame in frames], count)
    replay.close()
    return took


def activations(count: int) -> float:
    replay = host()
    replay.handle(started("run", "steps", count + 1))
    frames = [completed("run", call) for call in range(1, count + 1)]
    answers = []
    took = timed(lambda: answers.extend(replay.handle(frame)[0] for frame in frames), count)
    assert all(isinstance(answer, Activated) for answer in answers)
    replay.close()
    return took


def evictions(count: int) -> float:
    replay = host()
    for number in range(count):
        replay.handle(started(f"run-{number}", "steps", 1))
    return timed(replay.close, count)


def memory_of_a_cached_run(count: int) -> float:
    replay = host()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(count):
        replay.handle(started(f"run-{number}", "steps", 1))
    size = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    replay.close()
    return size / count


def fanning_out(count: int) -> tuple[float, float]:
    replay = host()
    frame = started("run", "fan_out", count)
    out = timed(lambda: replay.handle(frame), 1)
    frames = [completed("run", call) for call in range(1, count + 1)]
    back = timed(lambda: [replay.handle(frame) for frame in frames], 1)
    replay.close()
    return out / 1e6, back / 1e6


def replaying(events: int) -> float:
    """Seconds to replay a history of about this many events, read from bytes."""
    options = ActivityOptionsRecord(start_to_close_timeout=600.0)
    calls = events // 3
    first = started("run", "steps", calls + 1).stimulus
    commits: list[tuple[Event, ...]] = []
    pending: tuple[Event, ...] = (first,)
    for call in range(1, calls + 1):
        number = 3 * call - 1
        arguments = codec.encode_arguments((0 if call == 1 else 5, call - 1))
        scheduled = ActivityScheduled(
            id=number, at=START + call, activity_id=call, name="add", arguments=arguments, options=options
        )
        commits.append((*pending, scheduled))
        begun = ActivityStarted(
            id=number + 1, at=START + call, activity_id=call, attempt=1, worker="m0/1", started_at=START + call
        )
        done = ActivityCompleted(id=number + 2, at=START + call, activity_id=call, attempt=1, result=RESULT)
        pending = (begun, done)
    commits.append(pending)
    bodies = tuple(
        encode_commit(
            Commit(
                run_id="run",
                commit_id=str(number),
                first_n=1,
                finished=number < len(commits),
                consumed=number,
                events=events,
            )
        )
        for number, events in enumerate(commits, start=1)
    )
    replay = host()
    frame = LoadRun(exchange=1, run_id="run", commits=bodies, first=True, last=True)
    answers: list[object] = []
    took = timed(lambda: answers.extend(replay.handle(frame)), 1)
    (loaded,) = answers
    assert isinstance(loaded, Loaded), loaded
    replay.close()
    return took / 1e6


def main() -> None:
    fresh_runs(200)
    print(f"fresh run                          {fresh_runs(3000):9.1f} µs")
    print(f"activation                         {activations(20_000):9.1f} µs")
    print(f"eviction                           {evictions(3000):9.1f} µs")
    print(f"memory of a cached run             {memory_of_a_cached_run(1000) / 1024:9.1f} KiB")
    out, back = fanning_out(10_000)
    print(f"fan-out of 10,000: calls           {out:9.3f} s")
    print(f"fan-out of 10,000: results         {back:9.3f} s")
    print(f"replay of a 10,000-event history   {replaying(10_000):9.3f} s")
    child()


def child() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests._support.sandbox import SandboxProcess

    began = time.perf_counter()
    with SandboxProcess(["tests._support.sandbox_workflows"], settings={"cached_workflows": 100_000}) as process:
        process.receive()
        print(f"child: start to Ready              {time.perf_counter() - began:9.3f} s")
        for batch in (1, 10, 100):
            rounds = 2000 // batch
            frames = [started(f"{batch}-{number}", "total", 1) for number in range(rounds * batch)]
            began = time.perf_counter()
            for number in range(rounds):
                process.send(*frames[number * batch : (number + 1) * batch])
                for _ in range(batch):
                    process.receive()
            took = (time.perf_counter() - began) / (rounds * batch) * 1e6
            print(f"child: fresh run in batches of {batch:<4}{took:9.1f} µs")


if __name__ == "__main__":
    main()
