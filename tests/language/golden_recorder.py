"""Records the histories in ``golden/``: ``python -m tests.language.golden_recorder`` writes those that are missing.

A history that is there is never written again: it stands for the runs of somebody who has upgraded.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from durablefuture_trio.client import Client
from durablefuture_trio.errors import UpdateRejectedError, WorkflowError
from durablefuture_trio.history.events import ActivityScheduled
from tests._support.language import Play
from tests._support.language_history import RunHistory
from tests.language import golden_workflows as golden

GOLDEN = Path(__file__).parent / "golden"


async def _order(_: Play, client: Client) -> None:
    await client.run(golden.golden_order, "Bob", id="order")


async def _nursery(_: Play, client: Client) -> None:
    await client.run(golden.golden_nursery, id="nursery")


async def _futures(_: Play, client: Client) -> None:
    await client.run(golden.golden_futures, id="futures")


async def _messages(_: Play, client: Client) -> None:
    handle = await client.start(golden.golden_messages, id="messages", start_signal=("last", (100,)))
    await handle.signal(golden.add, 1)
    await handle.update(golden.multiply, 2)
    with suppress(UpdateRejectedError):
        await handle.update(golden.multiply, 0)
    await handle.signal(golden.add, 2)
    await trio.sleep(1)
    await handle.update(golden.multiply, 3)
    await handle.result()


async def _parent(_: Play, client: Client) -> None:
    await client.run(golden.golden_parent, id="parent")
    await client.handle("golden-left").result()


async def _chain(_: Play, client: Client) -> None:
    handle = await client.start(golden.golden_chain, 0, id="chain", start_signal=(golden.add, (7,)))
    await handle.result()


async def _random(_: Play, client: Client) -> None:
    await client.run(golden.golden_random, id="random")


async def _cancelled(play: Play, client: Client) -> None:
    handle = await client.start(golden.golden_cancelled, id="cancelled")
    await play.recorded("cancelled", ActivityScheduled, 2)
    await handle.cancel("recorded")
    with suppress(WorkflowError):
        await handle.result()


async def _failed(_: Play, client: Client) -> None:
    with suppress(WorkflowError):
        await client.run(golden.golden_failed, id="failed")


SCENES: dict[str, Callable[[Play, Client], Awaitable[None]]] = {
    "order": _order,
    "nursery": _nursery,
    "futures": _futures,
    "messages": _messages,
    "parent": _parent,
    "chain": _chain,
    "random": _random,
    "cancelled": _cancelled,
    "failed": _failed,
}


def record(name: str) -> list[RunHistory]:
    """The histories of one scene as they would be written today."""
    play = Play("live", f"golden {name}")

    async def scene(client: Client) -> None:
        await SCENES[name](play, client)

    return play(scene, *golden.DEFINITIONS).runs


def as_json(runs: list[RunHistory]) -> str:
    """Runs with the bytes of their commits, and what they are for people."""
    told: list[dict[str, Any]] = [
        {
            "workflow_id": run.workflow_id,
            "run_id": run.run_id,
            "patches": run.patches,
            "kinds": run.kinds,
            "commits": [base64.b64encode(body).decode() for body in run.bodies],
        }
        for run in runs
    ]
    return json.dumps(told, indent=1) + "\n"


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name in SCENES:
        path = GOLDEN / f"{name}.json"
        if not path.exists():
            path.write_text(as_json(record(name)))
            print(f"recorded {path}")


if __name__ == "__main__":
    main()
