"""The parts of random programs that are about calls which go on by themselves: futures, what waits for several of them,
maps, children, other workflows; and how a world answers all of them in random order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import trio

from durablefuture_trio import (
    ActivityError,
    ChildWorkflowError,
    DurableFuture,
    DurableFutureError,
    RequestFailedError,
    activity,
    as_completed,
    durable_map,
    first,
    gather,
    outcomes,
    workflow,
)
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine.commands import (
    CancelActivity,
    CancelChild,
    Command,
    RequestExternal,
    ScheduleActivity,
    StartChild,
)
from tests._support.sandbox import Story

KINDS = {
    "submit": 4, "await_future": 3, "cancel_future": 3, "gather": 3, "outcomes": 1, "race": 3, "each": 2, "map": 2,
    "child": 3, "submit_child": 2, "signal": 1, "patch": 1,
}  # fmt: skip
LEAVES = ("submit", "await_future", "cancel_future", "submit_child", "child")
MOMENTS = (None, 1, 2, 3)


@activity
async def step(tag: str, digest: str) -> int:
    return len(tag + digest)


@workflow
async def child_program(tag: str) -> int:
    return len(tag)


abandonable_step = step.with_options(abandon_on_cancel=True)


def make_node(rng: Random, kind: str) -> tuple[Any, ...]:
    match kind:
        case "submit":
            return (kind, rng.randint(1, 4), rng.random() < 0.3)
        case "await_future" | "cancel_future":
            return (kind, rng.randrange(8), rng.choice(MOMENTS))
        case "gather" | "outcomes" | "each":
            return (kind, rng.randint(1, 6), rng.choice(MOMENTS))
        case "race":
            return (kind, rng.randint(1, 5), rng.choice(MOMENTS), rng.random() < 0.6)
        case "map":
            return (kind, rng.randint(1, 9), rng.randint(1, 4), rng.choice((None, 1, 0.5, "all")), rng.choice(MOMENTS))
        case "child" | "submit_child":
            return (kind, rng.choice(MOMENTS))
        case "signal" | "patch":
            return (kind, rng.randrange(3))
        case _:
            raise AssertionError(kind)


class FutureNodes:
    """What an interpreter does for these kinds. The futures of a program are one list that all of its tasks share."""

    def __init__(self) -> None:
        self._futures: list[DurableFuture[int]] = []
        self._children = 0

    def note(self, path: str, what: object) -> None:
        raise NotImplementedError

    def digest(self) -> str:
        raise NotImplementedError

    def _make(self, path: str, count: int) -> list[DurableFuture[int]]:
        made = [
            (abandonable_step if number % 3 == 2 else step).submit(f"{path}/{number}", self.digest())
            for number in range(count)
        ]
        self._futures += made
        return made

    async def _within_seconds(self, path: str, seconds: int | None, wait: Callable[[], Awaitable[None]]) -> None:
        with trio.CancelScope(deadline=float("inf") if seconds is None else trio.current_time() + seconds) as scope:
            try:
                await wait()
            except (ActivityError, ChildWorkflowError, RequestFailedError) as error:
                self.note(path, f"{type(error).__name__} {error}")
        self.note(path, f"cancelled {scope.cancelled_caught}")

    async def _submit(self, path: str, _scopes: Any, count: int, cancel: bool) -> None:
        made = self._make(path, count)
        if cancel:
            made[-1].cancel()
        self.note(path, [future.done() for future in made])

    async def _await_future(self, path: str, _scopes: Any, which: int, seconds: int | None) -> None:
        async def wait() -> None:
            self.note(path, await self._futures[-1 - which % len(self._futures)])

        if self._futures:
            await self._within_seconds(path, seconds, wait)

    async def _cancel_future(self, path: str, _scopes: Any, which: int, seconds: int | None) -> None:
        if seconds is not None:
            await trio.sleep(seconds)
        # A set has an order of its own, which must be the same everywhere.
        for index, future in enumerate(set(self._futures)):
            if index % 3 == which % 3:
                future.cancel()
                self.note(path, f"cancel {hash(future)}")

    async def _gather(self, path: str, _scopes: Any, count: int, seconds: int | None) -> None:
        async def wait() -> None:
            self.note(path, await gather(*set(self._make(path, count)), *self._futures[:1]))

        await self._within_seconds(path, seconds, wait)

    async def _outcomes(self, path: str, _scopes: Any, count: int, seconds: int | None) -> None:
        async def wait() -> None:
            self.note(path, [_shown(found) for found in await outcomes(*self._make(path, count))])

        await self._within_seconds(path, seconds, wait)

    async def _race(self, path: str, _scopes: Any, count: int, seconds: int | None, cancel_others: bool) -> None:
        async def wait() -> None:
            futures = self._make(path, count)
            winner = await first(*futures)
            self.note(path, f"winner {futures.index(winner)}")
            for future in futures if cancel_others else ():
                future.cancel()

        await self._within_seconds(path, seconds, wait)

    async def _each(self, path: str, _scopes: Any, count: int, seconds: int | None) -> None:
        async def wait() -> None:
            async for future in as_completed([*self._make(path, count), *self._futures[-8:]]):
                self.note(path, f"done {hash(future)}")

        await self._within_seconds(path, seconds, wait)

    async def _map(
        self, path: str, _scopes: Any, count: int, concurrency: int, tolerate: Any, seconds: int | None
    ) -> None:
        async def wait() -> None:
            items = [f"{path}/{number} {self.digest()}" for number in range(count)]
            found = await durable_map(one_item, items, concurrency=concurrency, tolerate=tolerate)
            self.note(path, [_shown(one) for one in found])

        await self._within_seconds(path, seconds, wait)

    async def _child(self, path: str, _scopes: Any, seconds: int | None) -> None:
        async def wait() -> None:
            self.note(path, await child_program(f"{path} {self.digest()}"))

        await self._within_seconds(path, seconds, wait)

    async def _submit_child(self, path: str, _scopes: Any, seconds: int | None) -> None:
        self._children += 1
        child = workflow.start_child(child_program, path, id=f"child-{self._children}", parent_close="abandon")
        self._futures.append(child)

        async def wait() -> None:
            self.note(path, await child.started())
            await child.signal("hello", path)

        await self._within_seconds(path, seconds, wait)

    async def _signal(self, path: str, _scopes: Any, which: int) -> None:
        async def wait() -> None:
            await workflow.handle(f"other-{which}").signal("hello", path)

        await self._within_seconds(path, which or None, wait)

    async def _patch(self, path: str, _scopes: Any, which: int) -> None:
        self.note(path, workflow.patched(f"patch-{which}"))


@activity
async def one_item(item: str) -> int:
    return len(item)


def _shown(found: int | DurableFutureError) -> object:
    return found if isinstance(found, int) else f"{type(found).__name__} {getattr(found, 'reason', '')}"


class OpenCalls:
    """What a world has not answered yet, by the number of the call."""

    def __init__(self) -> None:
        self._kinds: dict[int, str] = {}
        self._cancelled: set[int] = set()
        self._started: set[int] = set()

    @property
    def numbers(self) -> list[int]:
        return sorted(self._kinds)

    def take(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case ScheduleActivity():
                    self._kinds[command.call] = "activity"
                case StartChild():
                    self._kinds[command.call] = "child"
                case RequestExternal():
                    self._kinds[command.call] = "external"
                case CancelActivity() | CancelChild():
                    self._cancelled.add(command.call)

    def answer(self, story: Story, rng: Random, call: int, after: float) -> None:
        """Something comes of this call."""
        kind, how = self._kinds[call], rng.random()
        cancelled = call in self._cancelled
        if kind == "child" and call not in self._started and how < 0.9:
            self._started.add(call)
            return self.take(story.child_started(call, f"run-of-{call}", after=after))
        del self._kinds[call]
        match kind:
            case "activity":
                commands = _answer_activity(story, rng, call, after, how, cancelled)
            case "child" if call not in self._started:
                commands = story.child_start_failed(call)
            case "child" if cancelled and how < 0.6:
                commands = story.child_failed(call, how="cancelled", after=after)
            case "child" if how < 0.85:
                commands = story.child_completed(call, call * 10, after=after)
            case "child":
                commands = story.child_failed(call, how=rng.choice(("failed", "terminated")), after=after)
            case _:
                refused = Failure(type="RequestFailedError", message="refused") if how < 0.3 else None
                commands = story.external_resolved(call, refused)
        return self.take(commands)


def _answer_activity(story: Story, rng: Random, call: int, after: float, how: float, cancelled: bool) -> list[Command]:
    if cancelled and how < 0.6:
        return story.cancelled(call, after=after)
    if how < 0.85:
        return story.complete(call, call * 10, after=after)
    return story.fail(call, after=after, reason=rng.choice(("error", "timed_out", "crashed")))
