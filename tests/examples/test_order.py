"""The order example does what its description says."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from durablefuture_trio import RetryPolicy, WorkflowFailedError, open_supervisor
from durablefuture_trio.client import Client, WorkflowHandle
from durablefuture_trio.history.events import ActivityFailed

ORDER = Path(__file__).parents[2] / "examples" / "order"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def shop() -> ModuleType:
    """The example's module, imported beside whatever else is called ``shop``."""
    spec = util.spec_from_file_location("order_example_shop", ORDER / "shop.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """A client of a supervisor that runs the example, a hundred times as fast, in a directory of its own."""
    for name in ("shop.py", "supervisor.toml"):
        shutil.copy(ORDER / name, tmp_path)
    monkeypatch.setenv("SHOP_PACE", "0.01")
    with trio.fail_after(PATIENCE_S):
        async with open_supervisor(tmp_path / "supervisor.toml") as supervisor:
            yield supervisor.client


async def types_of(handle: WorkflowHandle[Any]) -> list[str]:
    return [event.type for event in await handle.history()]


async def test_an_order_is_charged_and_shipped_in_eight_events(client: Client) -> None:
    before = datetime.now(UTC)
    handle = await client.start("order", "Bob", "widget-1000", 1000.0, 2)
    receipt = await handle.result()

    assert set(receipt) == {"charged_amount", "tracking_id", "carrier", "estimated_delivery", "charge_id"}
    assert receipt["charged_amount"] == 1000.0
    assert receipt["carrier"] == "FastShip Express"
    delivery = datetime.fromisoformat(receipt["estimated_delivery"])
    assert before + timedelta(days=3) <= delivery <= datetime.now(UTC) + timedelta(days=3)
    assert await types_of(handle) == [
        "WorkflowStarted",
        "ActivityScheduled",
        "ActivityStarted",
        "ActivityCompleted",
        "ActivityScheduled",
        "ActivityStarted",
        "ActivityCompleted",
        "WorkflowCompleted",
    ]


async def test_a_declined_card_is_tried_again_after_one_and_two_seconds_and_then_fails_the_order(
    client: Client,
) -> None:
    handle = await client.start("order", "fail_customer", "widget-1000", 1000.0, 2)
    with pytest.raises(WorkflowFailedError) as caught:
        await handle.result()

    assert str(caught.value.cause) == "credit card charge failed: credit card declined"
    history = await handle.history()
    failures = [item.event for item in history if isinstance(item.event, ActivityFailed)]
    assert [failure.failure.message for failure in failures] == ["credit card declined"] * 3
    waits = [None if failure.retry_at is None else failure.retry_at - failure.at for failure in failures]
    assert waits == [pytest.approx(1.0), pytest.approx(2.0), None]
    assert [event.type for event in history][-1] == "WorkflowFailed"


def test_the_activities_have_the_policies_of_the_description(shop: ModuleType) -> None:
    assert shop.charge_credit_card.options == {
        "retry_policy": RetryPolicy(
            initial_interval=1.0,
            backoff_coefficient=2.0,
            maximum_interval=30.0,
            maximum_attempts=3,
            non_retryable_error_types=("invalid card", "insufficient funds"),
        ),
        "schedule_to_close_timeout": 300.0,
        "start_to_close_timeout": 30.0,
    }
    assert shop.ship_package.options == {
        "retry_policy": RetryPolicy(
            initial_interval=1.0,
            backoff_coefficient=1.5,
            maximum_interval=60.0,
            maximum_attempts=5,
            non_retryable_error_types=("address invalid",),
        ),
        "schedule_to_close_timeout": 600.0,
        "start_to_close_timeout": 60.0,
    }
