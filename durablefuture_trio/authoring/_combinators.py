"""Waiting for several durable futures: all of them, the first, each as it comes; and a map over many items."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable
from typing import Any, Generic, Literal, Protocol, TypeVar, overload

from durablefuture_trio.authoring._futures import (
    Arrivals,
    Countdown,
    DurableCall,
    DurableFuture,
    calls_of,
    first_failure,
    fresh,
)
from durablefuture_trio.authoring._runtime import current_run
from durablefuture_trio.errors import DurableFutureError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
T6 = TypeVar("T6")

DEFAULT_CONCURRENCY = 100
"""Calls of a `durable_map` that are open at once, unless another number is given."""


@overload
async def gather() -> tuple[()]: ...
@overload
async def gather(f1: DurableFuture[T1], /) -> tuple[T1]: ...
@overload
async def gather(f1: DurableFuture[T1], f2: DurableFuture[T2], /) -> tuple[T1, T2]: ...
@overload
async def gather(f1: DurableFuture[T1], f2: DurableFuture[T2], f3: DurableFuture[T3], /) -> tuple[T1, T2, T3]: ...
@overload
async def gather(
    f1: DurableFuture[T1], f2: DurableFuture[T2], f3: DurableFuture[T3], f4: DurableFuture[T4], /
) -> tuple[T1, T2, T3, T4]: ...
@overload
async def gather(
    f1: DurableFuture[T1],
    f2: DurableFuture[T2],
    f3: DurableFuture[T3],
    f4: DurableFuture[T4],
    f5: DurableFuture[T5],
    /,
) -> tuple[T1, T2, T3, T4, T5]: ...
@overload
async def gather(
    f1: DurableFuture[T1],
    f2: DurableFuture[T2],
    f3: DurableFuture[T3],
    f4: DurableFuture[T4],
    f5: DurableFuture[T5],
    f6: DurableFuture[T6],
    /,
) -> tuple[T1, T2, T3, T4, T5, T6]: ...
@overload
async def gather(*futures: DurableFuture[T]) -> tuple[T, ...]: ...
async def gather(*futures: DurableFuture[Any]) -> tuple[Any, ...]:
    """The results of all futures, in the order they were given in.

    When one fails, the others are cancelled and waited for, as in a nursery, and the failure is raised. A task that is
    cancelled in ``gather`` just stops waiting: the run owns the calls, and they go on.

    Raises:
        ActivityError, ChildWorkflowError: the failure of the one that failed first.
    """
    calls = calls_of(futures)
    await Countdown(calls, stop_at_failure=True).sleep()
    failed = first_failure(calls)
    if failed is not None:
        await _cancel_and_wait(calls)
        failed.result()
    return tuple([future.result() for future in futures])


@overload
async def outcomes() -> tuple[()]: ...
@overload
async def outcomes(f1: DurableFuture[T1], /) -> tuple[T1 | DurableFutureError]: ...
@overload
async def outcomes(
    f1: DurableFuture[T1], f2: DurableFuture[T2], /
) -> tuple[T1 | DurableFutureError, T2 | DurableFutureError]: ...
@overload
async def outcomes(
    f1: DurableFuture[T1], f2: DurableFuture[T2], f3: DurableFuture[T3], /
) -> tuple[T1 | DurableFutureError, T2 | DurableFutureError, T3 | DurableFutureError]: ...
@overload
async def outcomes(
    f1: DurableFuture[T1], f2: DurableFuture[T2], f3: DurableFuture[T3], f4: DurableFuture[T4], /
) -> tuple[T1 | DurableFutureError, T2 | DurableFutureError, T3 | DurableFutureError, T4 | DurableFutureError]: ...
@overload
async def outcomes(*futures: DurableFuture[T]) -> tuple[T | DurableFutureError, ...]: ...
async def outcomes(*futures: DurableFuture[Any]) -> tuple[Any, ...]:
    """What became of all futures, in the order they were given in: for each its result, or the exception awaiting it
    would raise (`ActivityError`, `ChildWorkflowError`). Waits for all of them; no failure cancels the others."""
    await Countdown(calls_of(futures)).sleep()
    return tuple([_outcome(call) for future in futures for call in calls_of((future,))])


async def first(*futures: DurableFuture[T]) -> DurableFuture[T]:
    """The future that is done first, whether it has a result or failed. The others go on: cancel them if they are not
    wanted.

        fastest = await first(*quotes)
        for quote in quotes:
            quote.cancel()          # without effect on the one that is done
        return await fastest

    Raises:
        ValueError: no future was given.
    """
    if not futures:
        raise ValueError("first() needs at least one future to wait for")
    arrivals = Arrivals(calls_of(futures))
    try:
        winner = await arrivals.next()
    finally:
        arrivals.forget()
    return next(future for future in futures if calls_of((future,)) == [winner])


def as_completed(futures: Iterable[DurableFuture[T]]) -> AsCompleted[T]:
    """The futures in the order they are done in: each one given out is done.

        async for future in as_completed(uploads):
            report(future.result())

    The order is that of the outcomes in the history, the same in every replay.
    """
    return AsCompleted(futures)


class AsCompleted(AsyncIterator[DurableFuture[T_co]], Generic[T_co]):
    """What `as_completed` returns. An object and no generator: it may be left in the middle without ceremony."""

    def __init__(self, futures: Iterable[DurableFuture[T_co]]) -> None:
        self._futures = {call: future for future in futures for call in calls_of((future,))}
        self._arrivals = Arrivals(self._futures)

    def __aiter__(self) -> AsCompleted[T_co]:
        return self

    async def __anext__(self) -> DurableFuture[T_co]:
        if not self._arrivals:
            raise StopAsyncIteration
        return self._futures.pop(await self._arrivals.next())


class Submits(Protocol[T_contra, T_co]):
    """An activity or a workflow with one parameter that has to be given."""

    def submit(self, item: T_contra, /) -> DurableFuture[T_co]: ...


@overload
async def durable_map(
    act: Submits[T1, T2], items: Iterable[T1], *, concurrency: int = ..., tolerate: None = ...
) -> list[T2]: ...
@overload
async def durable_map(
    act: Submits[T1, T2], items: Iterable[T1], *, concurrency: int = ..., tolerate: float | Literal["all"]
) -> list[T2 | DurableFutureError]: ...
async def durable_map(
    act: Submits[Any, Any],
    items: Iterable[Any],
    *,
    concurrency: int = DEFAULT_CONCURRENCY,
    tolerate: float | Literal["all"] | None = None,
) -> list[Any]:
    """Call an activity (or a child workflow) for each item; gives the results in the order of the items.

        thumbnails = await durable_map(render, images, concurrency=50)

    One task does it, whatever the number of items. When the calling task is cancelled, or more calls fail than are
    tolerated, the open calls are cancelled and waited for.

    Args:
        act: takes one item.
        items: taken all at once, when the map begins.
        concurrency: how many calls are open at once.
        tolerate: how many calls may fail: None (none of them), an integer, a fraction of the items (a float from 0 to
            1), or ``"all"``. Unless it is None, the exceptions stand in the places of the results.

    Raises:
        ActivityError, ChildWorkflowError: the failure that was one too many.
        ValueError: `concurrency` or `tolerate` is out of its range. TypeError: `tolerate` is no number.
        LimitExceededError: see there.
    """
    everything = list(items)
    if concurrency < 1:
        raise ValueError(f"durable_map: concurrency must be an integer of at least 1, not {concurrency!r}")
    tolerated = _tolerated(tolerate, len(everything))
    if current_run.get() is None:
        raise RuntimeError(
            "durable_map works only in the code of a running workflow: in a unit test, call the activity for each item"
        )
    return await _Map(act, everything, concurrency, tolerated).run()


class _Map:
    def __init__(self, act: Submits[Any, Any], items: list[Any], concurrency: int, tolerated: int) -> None:
        self._act = act
        self._items = items
        self._concurrency = concurrency
        self._tolerated = tolerated
        self._results: list[Any] = [None] * len(items)
        self._places: dict[DurableCall, int] = {}
        self._arrivals = Arrivals()
        self._submitted = 0

    async def run(self) -> list[Any]:
        failures = 0
        try:
            self._submit()
            while self._arrivals:
                call = await self._arrivals.next()
                self._results[self._places.pop(call)] = _outcome(call)
                if call.error is not None:
                    failures += 1
                    if failures > self._tolerated:
                        call.result()
                self._submit()
        except BaseException:
            await self._end()
            raise
        return self._results

    def _submit(self) -> None:
        while self._submitted < len(self._items) and len(self._arrivals) < self._concurrency:
            (call,) = calls_of((self._act.submit(self._items[self._submitted]),))
            self._places[call] = self._submitted
            self._submitted += 1
            self._arrivals.add(call)

    async def _end(self) -> None:
        # Nobody else has these calls: as when an awaited call is cancelled, they end before the exception goes on.
        from trio import CancelScope

        calls = self._arrivals.open_calls
        self._arrivals.forget()
        with CancelScope(shield=True):
            await _cancel_and_wait(calls)


async def _cancel_and_wait(calls: Iterable[DurableCall]) -> None:
    still_open = [call for call in calls if not call.place]
    for call in still_open:
        call.cancel()
    if any(not call.place for call in still_open):
        await Countdown(still_open).sleep()


def _outcome(call: DurableCall) -> Any:
    return call.value if call.error is None else fresh(call.error)


def _tolerated(tolerate: float | Literal["all"] | None, count: int) -> int:
    if tolerate is None:
        return 0
    if tolerate == "all":
        return count
    if isinstance(tolerate, bool) or not isinstance(tolerate, (int, float)):
        raise TypeError(f"durable_map: tolerate must be a number of failures, a fraction or 'all', not {tolerate!r}")
    if isinstance(tolerate, int):
        if tolerate < 0:
            raise ValueError(f"durable_map: tolerate must not be negative, and is {tolerate}")
        return tolerate
    if not 0 <= tolerate <= 1:
        raise ValueError(f"durable_map: a fraction to tolerate is between 0 and 1, and not {tolerate}")
    return math.floor(tolerate * count + 1e-9)  # 0.29 of 100 are 29, whatever binary fractions say
