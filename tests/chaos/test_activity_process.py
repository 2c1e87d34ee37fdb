"""SIGKILL to an activity process while it runs an activity."""

from __future__ import annotations

import os
import signal

import pytest
import trio

from tests._support.chaos import Chaos
from tests._support.chaos_app import Receipt, order
from tests._support.chaos_audit import table

pytestmark = pytest.mark.chaos


async def test_the_attempt_crashed_and_the_next_one_is_in_the_history(chaos: Chaos) -> None:
    supervisor = chaos.supervisor()
    await supervisor.start()
    async with chaos.connect(supervisor) as connection:
        handle = await connection.client.start(order, "Bob", 1000.0, "shipping", id="order-1")
        first = await chaos.begun("ship_package")
        os.kill(first.pid, signal.SIGKILL)
        second = await chaos.begun("ship_package", attempt=2)
        chaos.open_gate("shipping")
        with trio.fail_after(10):
            assert await handle.result() == Receipt(1000.0, "ch_Bob", "trk_ch_Bob", 2)
        histories = await chaos.check(connection, "order-1")
    assert table(histories["order-1"]) == [
        "started",
        "scheduled",
        "started",
        "completed",
        "scheduled",
        "started",
        "failed (crashed)",
        "scheduled (attempt 2)",
        "started",
        "completed",
        "workflow completed",
    ]
    assert second.pid != first.pid
    assert second.at - first.at < 3.0, "the next attempt comes within its backoff"
    assert [(item.what, item.activity, item.attempt) for item in chaos.witnesses] == [
        ("begin", "charge_credit_card", 1),
        ("end", "charge_credit_card", 1),
        ("begin", "ship_package", 1),
        ("begin", "ship_package", 2),
        ("end", "ship_package", 2),
    ]
