"""Workflows as users write them, run by a supervisor that was started as users start it."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import trio

from durablefuture_trio import ActivityError, ApplicationError, WorkflowFailedError
from durablefuture_trio.client import Client
from tests._support import acceptance_app as app
from tests._support.acceptance_app import noted
from tests._support.installation import Installation, until


async def test_a_workflow_calls_its_activity_and_returns_a_result(client: Client) -> None:
    assert await client.run(app.greeting, "Bob") == "hello Bob"


async def test_the_command_line_runs_a_workflow_by_name_and_shows_its_history(shared: Installation) -> None:
    done = await shared.command("run", "greeting", "Bob", "--id", "by-command")
    assert (done.code, done.stdout) == (0, '"hello Bob"\n')

    history = await shared.command("history", "by-command", "--json")
    assert [event["event"] for event in history.data] == [
        "WorkflowStarted",
        "ActivityScheduled",
        "ActivityStarted",
        "ActivityCompleted",
        "WorkflowCompleted",
    ]
    assert [event["seq"] for event in history.data] == [1, 2, 3, 4, 5]
    times = [event["at"] for event in history.data]
    assert times == sorted(times)


async def test_a_plain_function_runs_in_a_thread(client: Client) -> None:
    assert await client.run(app.greeting_in_thread, "Bob") == "hello Bob from True"


async def test_a_class_is_a_workflow_too(client: Client) -> None:
    assert await client.run(app.Conversation, "Bob", "Eve") == ["hello Bob", "hello Eve"]


async def test_values_come_back_as_what_they_were(client: Client) -> None:
    parcel = app.Parcel(
        id=uuid.uuid4(),
        items=[app.Item("widget", Decimal("19.99"), app.Colour.RED)],
        at=datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        after=timedelta(days=3, microseconds=1),
        label=b"\x00\xff",
        tags=frozenset({"fragile", "gift"}),
        weights={"a": (1, 2.5)},
    )
    packed = await client.run(app.packing, parcel)
    assert packed.items.pop() == app.Item("bow", Decimal("0.10"), app.Colour.BLUE)
    assert packed == parcel
    assert isinstance(packed.tags, frozenset)


async def test_of_fifty_calls_at_once_each_runs_once_and_gets_its_own_result(client: Client, journal: Path) -> None:
    assert await client.run(app.fan_out, 50, str(journal)) == [2 * number for number in range(50)]
    assert sorted(noted(journal), key=int) == [str(number) for number in range(50)]
