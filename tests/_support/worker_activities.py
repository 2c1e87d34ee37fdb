"""Activities for the tests of the activity process."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import trio

from durablefuture_trio import ApplicationError, activity, workflow


@dataclass
class Item:
    name: str
    count: int = 1


@activity
async def echo(item: Item) -> Item:
    return Item(item.name, item.count + 1)


@activity
async def add(first: int, second: int = 10) -> int:
    return first + second


@activity
def in_thread(item: Item) -> list[Any]:
    return [item.name, threading.current_thread() is threading.main_thread(), activity.info().idempotency_key]


@activity
async def info() -> dict[str, Any]:
    attempt = activity.info()
    return {
        "activity": attempt.activity,
        "workflow_id": attempt.workflow_id,
        "run_id": attempt.run_id,
        "activity_id": attempt.activity_id,
        "attempt": attempt.attempt,
        "deadline": attempt.deadline,
        "idempotency_key": attempt.idempotency_key,
    }


@activity
async def fail() -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ApplicationError("no money", type="CardDeclined", details=[5], non_retryable=True) from error


@activity
async def fail_in_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail.fn)


@activity
async def leave() -> None:
    sys.exit(3)


@activity
def leave_from_thread() -> None:
    sys.exit(3)


@activity
async def interrupt() -> None:
    raise KeyboardInterrupt


@activity
async def wait(mark: str) -> str:
    """Waits for ever; says so, and when it is cancelled."""
    logging.getLogger("waits").info("waiting %s", mark)
    try:
        await trio.sleep_forever()
    finally:
        logging.getLogger("waits").info("ended %s", mark)
    return mark


@activity
async def insist(mark: str) -> str:
    """Waits for ever, but returns a value when cancelled."""
    logging.getLogger("waits").info("waiting %s", mark)
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        return f"{mark} anyway"
    return "never"


@activity
async def fail_when_cancelled(mark: str) -> None:
    logging.getLogger("waits").info("waiting %s", mark)
    try:
        await trio.sleep_forever()
    finally:
        raise RuntimeError("could not clean up")


@activity
def wait_in_thread(mark: str) -> None:
    """Waits in a thread that looks for a cancel."""
    logging.getLogger("waits").info("waiting %s", mark)
    while True:
        trio.from_thread.check_cancelled()
        time.sleep(0.001)


@activity
def wait_for_file(path: str) -> str:
    """Blocks a thread, deaf to cancels, until a file is there."""
    logging.getLogger("waits").info("waiting %s", path)
    while not os.path.exists(path):
        time.sleep(0.001)
    return "done"


@activity
def forgotten_await() -> Any:
    return echo.fn(Item("x"))


@activity
async def not_encodable() -> object:
    return object()


@activity
async def large(size: int) -> str:
    return "x" * size


@activity
async def shout() -> None:
    print("to the standard output")
    print("to the standard error", file=sys.stderr)
    activity.logger.warning("an %s", "attempt")
    logging.getLogger("shop.orders").error("a line \udcff", exc_info=ValueError("inside"))
    logging.getLogger("shop.orders").debug("not shown")


@activity
async def hog() -> int:
    """Asks for far more memory than there may be."""
    return len(bytearray(1 << 33))


@activity
async def parent_pid() -> int:
    return os.getppid()


@workflow
async def some_workflow() -> None: ...
