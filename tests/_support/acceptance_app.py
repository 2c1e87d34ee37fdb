"""The workflows and activities of a user, for the acceptance tests. Tests import it, supervisors name it.

Activities that leave traces do so in a journal, a file whose path they are given: one line per attempt.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path

import trio

from durablefuture_trio import ActivityError, ApplicationError, RetryPolicy, activity, activity_options, workflow

ONCE = RetryPolicy(maximum_attempts=1)
QUICK = RetryPolicy(initial_interval=0.05, backoff_coefficient=2.0)


def note(journal: str, text: str) -> None:
    """One line of the journal; lines of several processes do not mix."""
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def noted(journal: Path) -> list[str]:
    """The lines so far."""
    return journal.read_text().splitlines() if journal.exists() else []


# --- plain steps ------------------------------------------------------------------------------------------------------


@activity
async def greet(name: str) -> str:
    return f"hello {name}"


@activity
def greet_in_thread(name: str) -> str:
    return f"hello {name} from {threading.current_thread() is not threading.main_thread()}"


@workflow
async def greeting(name: str) -> str:
    return await greet(name)


@workflow
async def greeting_in_thread(name: str) -> str:
    return await greet_in_thread(name)


@workflow
class Conversation:
    """A class is a workflow too."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def run(self, first: str, second: str) -> list[str]:
        for name in (first, second):
            self.said.append(await greet(name))
        return self.said


@workflow
async def many_steps(count: int) -> int:
    total = 0
    for _ in range(count):
        total = await add(total, 1)
    return total


@activity
async def add(left: int, right: int) -> int:
    return left + right


# --- typed values -----------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Item:
    name: str
    price: Decimal
    colour: Colour


@dataclass
class Parcel:
    id: uuid.UUID
    items: list[Item]
    at: datetime
    after: timedelta
    label: bytes
    tags: frozenset[str]
    weights: dict[str, tuple[int, float]]
    note: str | None = None


@activity
async def pack(parcel: Parcel) -> Parcel:
    assert isinstance(parcel.items[0].price, Decimal)
    assert isinstance(parcel.at, datetime)
    parcel.items.append(Item(name="bow", price=Decimal("0.10"), colour=Colour.BLUE))
    return parcel


@workflow
async def packing(parcel: Parcel) -> Parcel:
    packed = await pack(parcel)
    assert isinstance(packed.id, uuid.UUID)
    return packed


# --- fan-out ----------------------------------------------------------------------------------------------------------


@activity
async def double(number: int, journal: str) -> int:
    note(journal, str(number))
    # The later the call, the sooner its result.
    await trio.sleep(max(50 - number, 0) * 0.002)
    return 2 * number


@workflow
async def fan_out(count: int, journal: str) -> list[int]:
    results: dict[int, int] = {}

    async def one(number: int) -> None:
        results[number] = await double(number, journal)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    return [results[number] for number in range(count)]


# --- failures ---------------------------------------------------------------------------------------------------------


class InsufficientFundsError(Exception):
    """A failure of the user's own type."""


@activity(retry_policy=ONCE)
async def charge(amount: int) -> None:
    try:
        raise KeyError("account")
    except KeyError as error:
        raise InsufficientFundsError(f"{amount} is too much") from error


@workflow
async def failing_by_activity(amount: int) -> None:
    await charge(amount)


@workflow
async def failing_by_itself(words: str) -> None:
    raise ApplicationError(words, type="OutOfStock", details=["widget", 3])


@workflow
async def failing_in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(charge, 5)
        nursery.start_soon(trio.sleep_forever)


@workflow
async def handling_a_failure(amount: int) -> str:
    try:
        await charge(amount)
    except ActivityError as error:
        return f"{type(error.cause).__name__} {getattr(error.cause, 'type', '')} {error.reason} {error.attempts}"
    return "charged"


@activity(retry_policy=RetryPolicy(initial_interval=0.05, non_retryable_error_types=("InsufficientFundsError",)))
async def charge_by_name(journal: str) -> None:
    note(journal, f"attempt {activity.info().attempt}")
    raise InsufficientFundsError("no")


@activity(retry_policy=QUICK)
async def charge_by_flag(journal: str) -> None:
    note(journal, f"attempt {activity.info().attempt}")
    raise ApplicationError("no", type="Declined", non_retryable=True)


@workflow
async def non_retryable(journal: str, by: str) -> None:
    await (charge_by_name if by == "name" else charge_by_flag)(journal)


@activity(retry_policy=QUICK)
async def flaky(succeeds_at: int, journal: str) -> int:
    attempt = activity.info().attempt
    note(journal, f"attempt {attempt} at {time.time()}")
    if attempt < succeeds_at:
        raise ConnectionError(f"attempt {attempt}: the line is busy")
    return attempt


@workflow
async def with_retries(succeeds_at: int, initial_interval: float, coefficient: float, journal: str) -> int:
    policy = RetryPolicy(initial_interval=initial_interval, backoff_coefficient=coefficient)
    with activity_options(retry_policy=policy):
        return await flaky(succeeds_at, journal)


@workflow
async def with_limited_retries(attempts: int, journal: str) -> int:
    policy = RetryPolicy(initial_interval=0.02, maximum_attempts=attempts)
    return await flaky.with_options(retry_policy=policy)(1_000, journal)


# --- time -------------------------------------------------------------------------------------------------------------


@workflow
async def sleeping(seconds: float) -> float:
    before = trio.current_time()
    await trio.sleep(seconds)
    return trio.current_time() - before


@activity(retry_policy=ONCE)
async def endless(journal: str) -> None:
    note(journal, "started")
    try:
        await trio.sleep_forever()
    finally:
        note(journal, "cancelled")


@workflow
async def giving_up(seconds: float, journal: str) -> str:
    with trio.move_on_after(seconds):
        await endless(journal)
        return "finished"
    return await greet("again")


@activity(start_to_close_timeout=0.3, retry_policy=ONCE)
async def too_slow(journal: str) -> None:
    note(journal, "started")
    try:
        await trio.sleep_forever()
    finally:
        note(journal, "cancelled")


@activity(start_to_close_timeout=0.3, retry_policy=ONCE)
def too_slow_in_thread(journal: str) -> None:
    note(journal, f"process {os.getpid()}")
    time.sleep(3600)


@workflow
async def timing_out(journal: str, in_thread: bool) -> str:
    try:
        await (too_slow_in_thread if in_thread else too_slow)(journal)
    except ActivityError as error:
        return error.reason
    return "finished"


@activity(schedule_to_close_timeout=0.5, retry_policy=RetryPolicy(initial_interval=0.1, backoff_coefficient=1.0))
async def failing_on(journal: str) -> None:
    note(journal, "attempt")
    raise ConnectionError("not yet")


@workflow
async def limited_in_all(journal: str) -> None:
    await failing_on(journal)


@workflow
async def waiting_for_ever() -> None:
    await trio.sleep_forever()


@workflow
async def working_for_ever(journal: str) -> None:
    await endless(journal)


# --- what kills its process -------------------------------------------------------------------------------------------


@activity(retry_policy=RetryPolicy(initial_interval=0.05, maximum_attempts=3))
async def poisonous(journal: str) -> None:
    note(journal, f"attempt {activity.info().attempt}")
    os.kill(os.getpid(), signal.SIGKILL)


@workflow
async def poisoned(journal: str) -> str:
    try:
        await poisonous(journal)
    except ActivityError as error:
        return f"{error.reason} after {error.attempts}"
    return "survived"


# --- sizes ------------------------------------------------------------------------------------------------------------


@activity(retry_policy=ONCE)
async def blow_up(size: int) -> str:
    return "x" * size


@activity
async def length(text: str) -> int:
    return len(text)


@workflow
async def large_result_of_activity(size: int) -> int:
    return len(await blow_up(size))


@workflow
async def large_argument_of_activity(size: int) -> int:
    return await length("x" * size)


@workflow
async def large_result(size: int) -> str:
    return "x" * size


@workflow
async def large_argument(text: str) -> int:
    return len(text)


# --- what workflow code must not do -----------------------------------------------------------------------------------


@workflow
async def violating(what: str) -> str:
    await greet("before")
    if what == "file":
        with open("/etc/hostname") as file:  # noqa: ASYNC230 - the mistake to be refused
            return file.read()
    if what == "socket":
        socket.create_connection(("127.0.0.1", 1))
    if what == "sleep":
        time.sleep(0.001)  # noqa: ASYNC251 - the mistake to be refused
    if what == "thread":
        threading.Thread(target=print).start()
    return what


@workflow
async def spinning(name: str) -> None:
    await greet(name)
    while True:
        pass


@workflow
async def hoarding() -> int:
    hoarded = []
    while True:
        hoarded.append(bytearray(32 * 1024 * 1024))


# --- queues and names -------------------------------------------------------------------------------------------------


@workflow
async def on_queue(queue: str) -> str:
    with activity_options(task_queue=queue):
        return await greet("queue")


@workflow
async def clock() -> tuple[datetime, float]:
    return datetime.now(UTC), time.time()


# --- restarts ---------------------------------------------------------------------------------------------------------


@activity
async def take_time(seconds: float, journal: str) -> str:
    note(journal, "started")
    await trio.sleep(seconds)
    note(journal, "finished")
    return "finished"


@workflow
async def slow_step(seconds: float, journal: str) -> str:
    return await take_time(seconds, journal)


@activity
async def leave_note(journal: str, text: str) -> None:
    note(journal, text)


@workflow
async def step_sleep_step(seconds: float, journal: str) -> float:
    await leave_note(journal, "before")
    before = trio.current_time()
    await trio.sleep(seconds)
    await leave_note(journal, "after")
    return trio.current_time() - before


@workflow
async def fan_out_and_wait(count: int, seconds: float, journal: str) -> list[int]:
    results = await fan_out.fn(count, journal)
    await trio.sleep(seconds)
    return results


@activity(retry_policy=QUICK)
async def succeed_at_third(word: str, journal: str) -> str:
    note(journal, f"{word} {activity.info().attempt}")
    if activity.info().attempt < 3:
        raise ConnectionError(word)
    return word


@workflow
async def two_that_fail_first(journal: str) -> list[str]:
    results: list[str] = []

    async def one(word: str) -> None:
        results.append(await succeed_at_third(word, journal))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "first")
        nursery.start_soon(one, "second")
    return sorted(results)


@activity
async def say(words: str) -> None:
    activity.logger.info("the activity says %s", words)
    print(f"printed: {words}")


@workflow
async def talking(words: str, seconds: float) -> None:
    workflow.logger.info("the workflow says %s", words)
    await say(words)
    await trio.sleep(seconds)
    workflow.logger.info("the workflow has said %s", words)
