"""Durable calls that are not awaited where they are made: `DurableFuture`, and what a task waits for several with."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from durablefuture_trio.authoring._runtime import current_run
from durablefuture_trio.errors import DurableFutureError

if TYPE_CHECKING:
    import trio

T_co = TypeVar("T_co", covariant=True)


class DurableCall:
    """A call that the history answers, as its futures and those who wait for it see it. The run makes and settles it.

    Attributes:
        number: of the call in its run.
        place: the how-manieth settled call of the run this is, from 1; 0: open.
        value, error: the outcome, once it is settled. ``error`` is never raised itself, but copied.
    """

    __slots__ = ("_waiters", "error", "number", "place", "value")

    def __init__(self, number: int) -> None:
        self.number = number
        self.place = 0
        self.value: Any = None
        self.error: DurableFutureError | None = None
        self._waiters: dict[Waiter, None] | None = None

    def cancel(self) -> None:
        """Ask for its end."""
        raise NotImplementedError

    def wake(self, task: trio.lowlevel.Task) -> None:
        """Let a task go on that waits for this call."""
        raise NotImplementedError

    def add_waiter(self, waiter: Waiter) -> None:
        if self._waiters is None:
            self._waiters = {}
        self._waiters[waiter] = None

    def remove_waiter(self, waiter: Waiter) -> None:
        if self._waiters is not None:
            self._waiters.pop(waiter, None)

    def settle(self, value: Any, error: DurableFutureError | None, place: int) -> None:
        """Set the outcome and tell those who wait."""
        self.value, self.error, self.place = value, error, place
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            waiter.notify(self)

    def result(self) -> Any:
        """The value, or a fresh copy of the error raised: tracebacks of several waiters would mix in one object."""
        if self.error is not None:
            raise fresh(self.error)
        return self.value


def fresh(error: DurableFutureError) -> DurableFutureError:
    """A copy of `error` without its traceback."""
    again = copy.copy(error)
    again.__cause__ = error.__cause__
    return again


class DurableFuture(Generic[T_co]):
    """A durable call that goes on by itself: made by ``act.submit(...)`` and ``workflow.start_child(...)``.

    ``await future`` gives its result, or raises how it failed (`ActivityError`, `ChildWorkflowError`). The run owns the
    call: a waiter that is cancelled stops waiting and the call goes on; any number of tasks may wait, one after another
    or at once. Activities that are still open when the run ends are cancelled and waited for.

        charge = charge_credit_card.submit(customer, amount)
        stock = await reserve(product)
        receipt = Receipt(await charge, stock)
    """

    __slots__ = ("__weakref__", "_call")

    def __init__(self, call: DurableCall) -> None:
        self._call = call

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self._awaited().__await__()

    async def _awaited(self) -> T_co:
        await self.wait()
        return self.result()

    async def wait(self) -> None:
        """Wait until the call has ended, however it did."""
        await Countdown((self._call,)).sleep()

    def done(self) -> bool:
        """Whether the call has ended: `result` gives its outcome, and awaiting does not wait."""
        return self._call.place != 0

    def result(self) -> T_co:
        """The result of a call that has ended.

        Raises:
            RuntimeError: it has not ended.
            ActivityError, ChildWorkflowError: it failed, or was cancelled.
        """
        if not self._call.place:
            raise RuntimeError(f"{self!r} is not done: await it, or ask done() first")
        value: T_co = self._call.result()
        return value

    def cancel(self) -> None:
        """Ask for the call's end; without effect when it is done.

        The future is done when the outcome is there: usually an `ActivityError` whose reason is ``"cancelled"``, but a
        result that came anyway stays a result. A call that is cancelled before anything was waited for since it was
        made, and one with ``abandon_on_cancel``, is done at once.
        """
        self._call.cancel()

    def __hash__(self) -> int:
        # Not the address: sets of futures are iterated in the same order in every process.
        return self._call.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DurableFuture) and other._call is self._call

    def __repr__(self) -> str:
        if not self._call.place:
            state = "open"
        else:
            state = "done" if self._call.error is None else f"failed: {self._call.error}"
        return f"<{type(self).__name__} {self._call!r}, {state}>"


def calls_of(futures: Iterable[DurableFuture[Any]]) -> list[DurableCall]:
    """The calls behind futures, each once.

    Raises:
        TypeError: one of them is something else.
    """
    calls: dict[DurableCall, None] = {}
    for future in futures:
        if not isinstance(future, DurableFuture):
            raise TypeError(
                f"{future!r} is no DurableFuture: make one with `act.submit(...)` or `workflow.start_child(...)`; "
                "coroutines go into a Trio nursery"
            )
        calls[future._call] = None  # noqa: SLF001 - the other half of the class, which users need not see
    return list(calls)


def first_failure(calls: Iterable[DurableCall]) -> DurableCall | None:
    """The call that failed first."""
    return min((call for call in calls if call.error is not None), key=lambda call: call.place, default=None)


def check_owner(call: DurableCall) -> None:
    """Refuse a call of another run.

    Raises:
        RuntimeError: as said.
    """
    run = current_run.get()
    if run is None or not run.owns(call):
        raise RuntimeError(f"{call!r} belongs to another run: a future is awaited in the workflow that made it")


class Waiter:
    """One task that waits for calls. Forgotten by them when it wakes or is cancelled."""

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    def notify(self, call: DurableCall) -> None:
        """One of the calls was settled."""
        raise NotImplementedError

    def _subscribe(self, call: DurableCall) -> None:
        check_owner(call)
        call.add_waiter(self)

    async def _sleep(self) -> None:
        from trio.lowlevel import Abort, current_task, wait_task_rescheduled

        self._task = current_task()

        def abort(_: object) -> Abort:
            self._task = None
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    def _wake(self, call: DurableCall) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            call.wake(task)


class Countdown(Waiter):
    """Waits until all of some calls are settled.

    Args:
        stop_at_failure: or until one of them has failed.
    """

    def __init__(self, calls: Iterable[DurableCall], *, stop_at_failure: bool = False) -> None:
        super().__init__()
        self._stop_at_failure = stop_at_failure
        self._calls = calls
        self._left = 0

    async def sleep(self) -> None:
        """Wait; a checkpoint in any case."""
        open_calls = [call for call in self._calls if not call.place]
        failed = self._stop_at_failure and any(call.error is not None for call in self._calls)
        if failed or not open_calls:
            from trio.lowlevel import checkpoint

            await checkpoint()
            return
        self._left = len(open_calls)
        try:
            for call in open_calls:
                self._subscribe(call)
            await self._sleep()
        finally:
            for call in open_calls:
                call.remove_waiter(self)

    def notify(self, call: DurableCall) -> None:
        self._left -= 1
        if self._left == 0 or (self._stop_at_failure and call.error is not None):
            self._wake(call)


class Arrivals(Waiter):
    """Calls in the order they are settled in, for one task at a time."""

    def __init__(self, calls: Iterable[DurableCall] = ()) -> None:
        super().__init__()
        known = list(calls)
        self._arrived = deque(sorted((call for call in known if call.place), key=lambda call: call.place))
        self._open: dict[DurableCall, None] = {}
        for call in known:
            if not call.place:
                self.add(call)

    @property
    def open_calls(self) -> tuple[DurableCall, ...]:
        """Those that are not settled."""
        return tuple(self._open)

    def __len__(self) -> int:
        """How many are still to be given out."""
        return len(self._arrived) + len(self._open)

    def add(self, call: DurableCall) -> None:
        """One more to wait for; it is open."""
        self._subscribe(call)
        self._open[call] = None

    async def next(self) -> DurableCall:
        """The next settled call; a checkpoint in any case."""
        if self._task is not None:
            raise RuntimeError("another task is already waiting for the next of these futures")
        if self._arrived:
            from trio.lowlevel import checkpoint

            await checkpoint()
        else:
            check_owner(next(iter(self._open)))
            await self._sleep()
        return self._arrived.popleft()

    def forget(self) -> None:
        """Wait for nothing any more."""
        for call in self._open:
            call.remove_waiter(self)
        self._open.clear()

    def notify(self, call: DurableCall) -> None:
        del self._open[call]
        self._arrived.append(call)
        self._wake(call)
