"""Workflows for the tests of the replay process; a module of their own, so that a child can import it."""

from __future__ import annotations

import logging
import os
import time

import trio

from durablefuture_trio.authoring._activity import activity
from durablefuture_trio.authoring._workflow import workflow


@activity
async def add(left: int, right: int) -> int:
    return left + right


@activity
async def shout(word: str) -> str:
    return word.upper()


@workflow
async def total(count: int) -> int:
    sum_so_far = 0
    for number in range(count):
        sum_so_far = await add(sum_so_far, number)
    return sum_so_far


@workflow
async def spin() -> None:
    while True:
        await trio.lowlevel.checkpoint()


@workflow
async def hoard() -> int:
    hoarded = []
    while True:
        hoarded.append(bytearray(16 * 1024 * 1024))


@workflow
async def exit_now() -> None:
    os._exit(3)


@workflow
async def chatty() -> str:
    logging.getLogger("shop").warning("before %d", 1)
    print("to standard output")
    word = await shout("hey")
    logging.getLogger("shop").info("after")
    return word


@workflow
async def surroundings() -> list[str]:
    return [time.strftime("%Z"), os.environ["PYTHONHASHSEED"], str(time.time()), str(trio.current_time())]
