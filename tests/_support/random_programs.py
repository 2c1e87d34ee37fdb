"""Random structured-concurrency programs, and a world that answers them in random order.

A program is a tree made from a seed, run as a workflow. It traces what it does; each activity call carries a digest of
the trace so far, and the result is the trace, so two executions that differ anywhere have different commands.

``python -m tests._support.random_programs FIRST COUNT SALT`` prints the digests of the executions, for
comparison across processes; SALT seeds allocations that scatter objects over memory.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from random import Random
from typing import Any

import trio

from durablefuture_trio.authoring._workflow import workflow
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.engine.commands import CompleteWorkflow, FailWorkflow
from durablefuture_trio.errors import ActivityError
from durablefuture_trio.ports.frames import Loaded
from durablefuture_trio.sandbox._host import ReplayHost
from tests._support import random_futures
from tests._support.random_futures import FutureNodes, OpenCalls, abandonable_step, child_program, step
from tests._support.sandbox import CODE_HASH, Story

MAX_STIMULI = 70
MAX_DEPTH = 4
MOMENTS = (1, 1, 2, 2, 3, 5)
"""Few different ones, so that deadlines and timers coincide."""

_KINDS = {
    "call": 9, "abandonable": 3, "fan": 4, "sleep": 4, "checkpoint": 2, "nursery": 5, "start": 2, "within": 6,
    "shield": 2, "cancel": 3, "wait": 2, "set": 3, "lock": 2, "limit": 1, "send": 2, "receive": 2, "notify": 1,
    "await_notice": 1, "raise": 1, "guarded": 2, "compensate": 3, "generator": 1, "dice": 1, **random_futures.KINDS,
}  # fmt: skip
_LEAVES = (
    "call", "abandonable", "sleep", "checkpoint", "cancel", "wait", "set", "send", "receive", "notify", "dice",
    *random_futures.LEAVES,
)  # fmt: skip


class Boom(Exception):
    pass


def make_block(rng: Random, depth: int) -> list[tuple[Any, ...]]:
    return [make_node(rng, depth) for _ in range(rng.randint(1, 3))]


def make_node(rng: Random, depth: int) -> tuple[Any, ...]:
    kinds = list(_KINDS) if depth < MAX_DEPTH else list(_LEAVES)
    (kind,) = rng.choices(kinds, [_KINDS[kind] for kind in kinds])
    if kind in random_futures.KINDS:
        return random_futures.make_node(rng, kind)
    match kind:
        case "sleep":
            return (kind, rng.choice(MOMENTS))
        case "fan":
            return (kind, rng.randint(2, 7), rng.choice((None, *MOMENTS)), rng.random() < 0.3)
        case "nursery":
            return (kind, [make_block(rng, depth + 1) for _ in range(rng.randint(2, 4))], rng.random() < 0.25)
        case "within":
            return (kind, rng.choice(MOMENTS), make_block(rng, depth + 1))
        case "start" | "shield" | "guarded" | "compensate" | "limit":
            return (kind, make_block(rng, depth + 1))
        case "lock":
            return (kind, rng.randrange(2), make_block(rng, depth + 1))
        case "cancel" | "wait" | "set" | "send" | "receive" | "generator":
            return (kind, rng.randrange(3))
        case _:
            return (kind,)


class Interpreter(FutureNodes):
    """Runs a program and writes down what happens."""

    def __init__(self) -> None:
        super().__init__()
        self.trace: list[str] = []
        self._digest = hashlib.sha256()
        self._zero = trio.current_time()
        self._events = [trio.Event() for _ in range(3)]
        self._locks = [trio.Lock(), trio.Lock()]
        self._limiter = trio.CapacityLimiter(1)
        self._condition = trio.Condition()
        self._channels = [trio.open_memory_channel[str](size) for size in (0, 1, 2)]

    def note(self, path: str, what: object) -> None:
        line = f"{trio.current_time() - self._zero:g} {path} {what}"
        self.trace.append(line)
        self._digest.update(line.encode())

    def digest(self) -> str:
        return self._digest.hexdigest()

    async def block(self, nodes: list[tuple[Any, ...]], path: str, scopes: tuple[trio.CancelScope, ...]) -> None:
        for index, node in enumerate(nodes):
            here = f"{path}.{index}"
            self.note(here, node[0])
            try:
                await getattr(self, f"_{node[0]}")(here, scopes, *node[1:])
            except BaseException as error:
                self.note(here, f"left by {type(error).__name__}")
                raise
            self.note(here, "done")

    async def _call(self, path: str, _scopes: Any, definition: Any = step) -> None:
        try:
            self.note(path, await definition(path, self._digest.hexdigest()))
        except ActivityError as error:
            self.note(path, f"{error.activity_id} {error.reason}")

    async def _abandonable(self, path: str, scopes: Any) -> None:
        await self._call(path, scopes, abandonable_step)

    async def _fan(self, path: str, scopes: Any, width: int, seconds: int | None, direct: bool) -> None:
        with trio.CancelScope(deadline=float("inf") if seconds is None else trio.current_time() + seconds) as scope:
            try:
                async with trio.open_nursery() as nursery:
                    for number in range(width):
                        if direct:
                            nursery.start_soon(step, f"{path}/{number}", "direct")
                        else:
                            nursery.start_soon(self._call, f"{path}/{number}", scopes)
            except* ActivityError as group:
                self.note(path, f"{len(group.exceptions)} failed")
        self.note(path, f"cancelled {scope.cancelled_caught}")

    async def _sleep(self, _path: str, _scopes: Any, seconds: int) -> None:
        await trio.sleep(seconds)

    async def _checkpoint(self, _path: str, _scopes: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def _nursery(self, path: str, scopes: Any, blocks: list[Any], cancel: bool) -> None:
        async with trio.open_nursery() as nursery:
            for number, nodes in enumerate(blocks):
                nursery.start_soon(self.block, nodes, f"{path}/{number}", (*scopes, nursery.cancel_scope))
            if cancel:
                await trio.sleep(1)
                nursery.cancel_scope.cancel()

    async def _start(self, path: str, scopes: Any, nodes: list[Any]) -> None:
        async def service(task_status: trio.TaskStatus[str]) -> None:
            await self.block(nodes, f"{path}/starting", scopes)
            task_status.started(path)
            await self.block(nodes, f"{path}/started", scopes)

        async with trio.open_nursery() as nursery:
            self.note(path, await nursery.start(service))

    async def _within(self, path: str, scopes: Any, seconds: int, nodes: list[Any]) -> None:
        with trio.move_on_after(seconds) as scope:
            await self.block(nodes, path, (*scopes, scope))
        self.note(path, f"cancelled {scope.cancelled_caught}")

    async def _shield(self, path: str, scopes: Any, nodes: list[Any]) -> None:
        with trio.CancelScope(shield=True) as scope:
            await self.block(nodes, path, (*scopes, scope))

    async def _cancel(self, _path: str, scopes: Any, which: int) -> None:
        if scopes:
            scopes[-1 - which % len(scopes)].cancel()

    async def _wait(self, _path: str, _scopes: Any, which: int) -> None:
        await self._events[which].wait()

    async def _set(self, _path: str, _scopes: Any, which: int) -> None:
        self._events[which].set()

    async def _lock(self, path: str, scopes: Any, which: int, nodes: list[Any]) -> None:
        if self._locks[which].locked() and scopes == ():
            return
        async with self._locks[which]:
            await self.block(nodes, path, scopes)

    async def _limit(self, path: str, scopes: Any, nodes: list[Any]) -> None:
        with trio.move_on_after(4):
            async with trio.CapacityLimiter(1), self._limiter:
                await self.block(nodes, path, scopes)

    async def _send(self, path: str, _scopes: Any, which: int) -> None:
        with trio.move_on_after(3):
            await self._channels[which][0].send(path)

    async def _receive(self, path: str, _scopes: Any, which: int) -> None:
        with trio.move_on_after(3):
            self.note(path, await self._channels[which][1].receive())

    async def _notify(self, _path: str, _scopes: Any) -> None:
        async with self._condition:
            self._condition.notify_all()

    async def _await_notice(self, _path: str, _scopes: Any) -> None:
        with trio.move_on_after(3):
            async with self._condition:
                await self._condition.wait()

    async def _raise(self, path: str, _scopes: Any) -> None:
        raise Boom(path)

    async def _guarded(self, path: str, scopes: Any, nodes: list[Any]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.block, nodes, path, scopes)
        except* Boom as group:
            self.note(path, f"caught {len(group.exceptions)}")

    async def _compensate(self, path: str, scopes: Any, nodes: list[Any]) -> None:
        try:
            await self.block(nodes, path, scopes)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                await self._call(f"{path}/undo", scopes)

    async def _generator(self, path: str, scopes: Any, count: int) -> None:
        async def numbers() -> AsyncIterator[int]:
            try:
                for number in range(3):
                    await trio.lowlevel.checkpoint()
                    yield number
            finally:
                self.note(path, "generator closed")

        async for number in numbers():
            self.note(path, number)
            if number == count:
                break

    async def _dice(self, path: str, _scopes: Any) -> None:
        self.note(path, f"{random.random()} {uuid.uuid4()} {time.time() - self._zero:g} {random.choice('abc')}")


@workflow
async def random_program(seed: int) -> list[str]:
    rng = Random(f"program {seed}")
    nodes = [node for _ in range(3) for node in make_block(rng, 0)]
    interpreter = Interpreter()
    with trio.move_on_after(100):
        await interpreter.block(nodes, str(seed), ())
    return interpreter.trace


class Scatter:
    """Makes the order of addresses differ from execution to execution, within one process as well."""

    def __init__(self, salt: int) -> None:
        self._rng = Random(salt)
        self._kept: list[Any] = []

    def shake(self) -> None:
        self._kept += [bytearray(self._rng.randrange(1, 700)) for _ in range(150)]
        self._kept += [{"k": number} for number in range(150)]
        self._kept += [Interpreter.__new__(Interpreter) for _ in range(100)]
        self._rng.shuffle(self._kept)
        del self._kept[400:]


def new_host(**options: Any) -> ReplayHost:
    return ReplayHost(Registry.of([random_program, child_program, step]).workflows, strict_code=CODE_HASH, **options)


def tell(story: Story, seed: int, before_each: Callable[[], object] = lambda: None) -> Story:
    """Start a program and answer it in random order until it ends.

    Args:
        before_each: called before each stimulus but the first.
    """
    rng = Random(f"world {seed}")
    open_calls = OpenCalls()
    open_calls.take(story.start())
    for _ in range(MAX_STIMULI):
        if finished(story):
            break
        before_each()
        moves = [*open_calls.numbers, *([0] if story.wake_at is not None else [])]
        if not moves:
            break
        call = rng.choice(moves)
        after = rng.choice((0.0, 0.0, 0.25, 1.0, 4.0))
        if call == 0:
            open_calls.take(story.fire(late=rng.choice((0.0, 0.0, 0.5, 2.0))))
        else:
            open_calls.answer(story, rng, call, after)
    return story


def finished(story: Story) -> bool:
    return bool(story.commands) and isinstance(story.commands[-1], CompleteWorkflow | FailWorkflow)


def digest_of(story: Story) -> str:
    digest = hashlib.sha256()
    for events in story.commits:
        for event in events:
            failure = getattr(event, "failure", None)
            digest.update(repr((type(event), event.id, event.at, failure and (failure.type, failure.message))).encode())
            digest.update(
                repr([getattr(event, name, None) for name in ("activity_id", "call", "arguments", "result")]).encode()
            )
    return digest.hexdigest()


def digests(seeds: Iterable[int], salt: int, *, replay: bool = False) -> list[str]:
    """Execute programs, each in a host of its own.

    Args:
        salt: seeds the scattering of objects over memory.
        replay: before each stimulus, drop the run and replay the history so far in another host.
    """
    scatter = Scatter(salt)
    found = []
    for seed in seeds:
        story = new_story(seed)

        def before_each(story: Story = story) -> None:
            scatter.shake()
            if replay:
                story.host.close()
                story.host = new_host()
                answer = story.replay()
                if not isinstance(answer, Loaded) or answer.unmatched or answer.wake_at != story.wake_at:
                    raise AssertionError((story.run_id, answer))

        scatter.shake()
        found.append(digest_of(tell(story, seed, before_each)))
        story.host.close()
    return found


def new_story(seed: int) -> Story:
    return Story(new_host(), "random_program", [seed], run_id=f"run-{seed}")


def main(first: int, count: int, salt: int) -> None:
    print(json.dumps(digests(range(first, first + count), salt)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
