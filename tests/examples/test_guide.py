"""Every snippet of the guide to workflows runs, and does what the text around it says.

As with the tests of the language, each scene is performed undisturbed, replayed after every event, and with everything
killed at random; it comes to the same.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from durablefuture_trio import (
    ApplicationError,
    RetryPolicy,
    UpdateFailedError,
    UpdateRejectedError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowTimedOutError,
    workflow,
)
from durablefuture_trio.authoring import Definition, definition_of
from durablefuture_trio.client import Client
from durablefuture_trio.engine.admission import MAX_OPEN_UPDATES, MAX_SIGNALS
from durablefuture_trio.history.events import ActivityCompleted, ActivityScheduled, MarkerRecorded, TimerFired
from durablefuture_trio.history.state import (
    HISTORY_LIMIT_EVENTS,
    MAX_RECENT_REQUESTS,
    MAX_UPDATE_OUTCOMES,
    SUGGESTED_EVENTS,
)
from durablefuture_trio.sandbox._calls import MAX_PENDING_ACTIVITIES, MAX_PENDING_CHILDREN, MAX_PENDING_REQUESTS
from tests._support.guide import load, write_sections
from tests._support.language import Mode, Play
from tests._support.language_stage import Performance

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "workflows.md"

LIMITS = {
    "events of a run": HISTORY_LIMIT_EVENTS,
    "signals of a run": MAX_SIGNALS,
    "updates accepted and open": MAX_OPEN_UPDATES,
    "activities open at once": MAX_PENDING_ACTIVITIES,
    "children open at once; requests to other workflows": MAX_PENDING_CHILDREN,
    "requests and update outcomes remembered, per workflow id": MAX_RECENT_REQUESTS,
}


class Guide:
    """The sections of the guide as modules, and what the tests have looked at so far."""

    def __init__(self, directory: Path) -> None:
        self.files = write_sections(GUIDE, directory)
        self._modules: dict[str, ModuleType] = {}

    def __getitem__(self, heading: str) -> ModuleType:
        if heading not in self._modules:
            self._modules[heading] = load(self.files[heading])
        return self._modules[heading]

    def definitions(self, heading: str) -> list[Any]:
        """The workflows and activities of a section."""
        found = [definition_of(value) for value in vars(self[heading]).values()]
        return [item for item in found if isinstance(item, Definition) and item.kind in ("workflow", "activity")]


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guide]:
    guide = Guide(tmp_path_factory.mktemp("guide"))
    yield guide
    for path in guide.files.values():
        sys.modules.pop(path.stem, None)


@pytest.fixture(params=["live", "replay", "killed"])
def play(request: pytest.FixtureRequest) -> Play:
    mode: Mode = request.param
    return Play(mode, f"guide::{request.node.originalname}")


def run(play: Play, guide: Guide, heading: str, flow: str, *args: Any, **options: Any) -> Any:
    """The result of one run of a workflow of a section, under the id ``"w"``."""
    return play.run(getattr(guide[heading], flow), *guide.definitions(heading), args=args, **options).result


def completed(performance: Performance[Any], name: str) -> int:
    """How many calls of an activity have succeeded, in the run ``"w"``."""
    calls = {it.activity_id for it in performance.events("w", ActivityScheduled) if it.name == name}
    return len([it for it in performance.events("w", ActivityCompleted) if it.activity_id in calls])


def test_trio(play: Play, guide: Guide) -> None:
    found = run(play, guide, "Trio", "pack", ["tea", "cup", "pot"])
    assert found == ["parcel with cup", "parcel with pot", "parcel with tea"]


def test_timers_and_timeouts(play: Play, guide: Guide) -> None:
    assert run(play, guide, "Timers and timeouts", "delivery", "Bob") == "nobody there after 60 seconds"
    assert 90 <= play.performances[0].seconds < 100


@pytest.mark.parametrize(
    ("product", "answer", "refunds"), [("tea", "parcel with tea", 0), ("piano", "refunded: too heavy", 1)]
)
def test_activities(play: Play, guide: Guide, product: str, answer: str, refunds: int) -> None:
    assert run(play, guide, "Activities", "order", "Bob", product, spare=["worker"]) == answer
    assert play.performances[-1].calls("refund") == refunds


class TestFanOut:
    heading = "Futures and fan-out"

    def test_gather(self, play: Play, guide: Guide) -> None:
        assert run(play, guide, self.heading, "cheapest", "tea", ["corner", "mall", "market"]) == 4.03

    def test_first(self, play: Play, guide: Guide) -> None:
        assert run(play, guide, self.heading, "quickest", "tea", ["mall", "town", "shop"]) == 4.03

    def test_outcomes(self, play: Play, guide: Guide) -> None:
        found = run(play, guide, self.heading, "ship_what_can_be_shipped", ["tea", "piano"])
        assert found == ["parcel with tea"]

    def test_as_completed(self, play: Play, guide: Guide) -> None:
        assert run(play, guide, self.heading, "in_order_of_arrival", ["tea", "cup"]) == 2

    def test_durable_map(self, play: Play, guide: Guide) -> None:
        assert run(play, guide, self.heading, "ship_all", ["tea", "piano", "cup", "pot"]) == ["piano"]

    def test_durable_map_beyond_its_tolerance(self, play: Play, guide: Guide) -> None:
        async def scene(client: Client) -> bool:
            with pytest.raises(WorkflowFailedError, match="too heavy"):
                await client.run(guide[self.heading].ship_all, ["piano", "tea", "piano"], id="w")
            return True

        assert play(scene, *guide.definitions(self.heading)).result


class TestMessages:
    heading = "Signals, queries, updates"

    def perform(self, play: Play, guide: Guide, scene: Any, **options: Any) -> Any:
        return play(scene, *guide.definitions(self.heading), **options).result

    def test_declared(self, play: Play, guide: Guide) -> None:
        assert self.perform(play, guide, guide[self.heading].shopping) == "Bob paid 20.00"

    def test_a_declared_validator_refuses(self, play: Play, guide: Guide) -> None:
        module = guide[self.heading]

        async def scene(client: Client) -> bool:
            handle = await client.start(module.cart, id="w")
            with pytest.raises(UpdateRejectedError, match="who pays"):
                await handle.update(module.checkout, "")
            return True

        assert self.perform(play, guide, scene, open_runs=["w"])

    def test_closures(self, play: Play, guide: Guide) -> None:
        assert self.perform(play, guide, guide[self.heading].approve_it) == "approved by Ann"

    def test_closures_with_nobody_to_answer(self, play: Play, guide: Guide) -> None:
        assert run(play, guide, self.heading, "approval") == "nobody has answered"

    def test_methods(self, play: Play, guide: Guide) -> None:
        assert self.perform(play, guide, guide[self.heading].take_and_put) == (1, 1)

    def test_a_validator_among_the_methods_refuses(self, play: Play, guide: Guide) -> None:
        stock = guide[self.heading].Stock

        async def scene(client: Client) -> int:
            handle = await client.start(stock, 2)
            with pytest.raises(UpdateRejectedError, match="take something"):
                await handle.update(stock.take, 0)
            await handle.signal(stock.close)
            left: int = await handle.result()
            return left

        assert self.perform(play, guide, scene) == 2

    def test_a_channel(self, play: Play, guide: Guide) -> None:
        assert self.perform(play, guide, guide[self.heading].ship_two) == 2


class TestCancellation:
    heading = "Cancellation and compensation"

    def test_nothing_is_undone_when_all_is_well(self, play: Play, guide: Guide) -> None:
        assert run(play, guide, self.heading, "saga", "Bob", ["tea", "cup"]) == 2
        assert play.performances[-1].calls("refund") == 0

    def test_a_failure_undoes_what_was_done_before(self, play: Play, guide: Guide) -> None:
        async def scene(client: Client) -> bool:
            with pytest.raises(WorkflowFailedError, match="too heavy"):
                await client.run(guide[self.heading].saga, "Bob", ["tea", "piano"], id="w")
            return True

        play(scene, *guide.definitions(self.heading))
        for performance in play.performances:
            assert completed(performance, "refund") == 2

    def test_a_cancel_undoes_what_was_done_before(self, play: Play, guide: Guide) -> None:
        async def scene(client: Client) -> str:
            handle = await client.start(guide[self.heading].saga, "Bob", ["tea", "cup", "pot"], id="w")
            await play.recorded("w", TimerFired)  # the first product is on its way, and some time has passed
            await handle.cancel("enough")
            with pytest.raises(WorkflowCancelledError) as caught:
                await handle.result()
            return caught.value.reason

        played = play(scene, *guide.definitions(self.heading))
        assert played.result == "enough"
        for performance in play.performances:
            assert completed(performance, "refund") == completed(performance, "charge") >= 1


def test_children(play: Play, guide: Guide) -> None:
    found = run(play, guide, "Child workflows", "parcels", ["tea", "piano"])
    assert found == ["parcel with tea", "parcel-piano: failed"]


class TestOtherWorkflows:
    heading = "Other workflows"

    def test_an_open_one_is_told(self, play: Play, guide: Guide) -> None:
        approval = guide["Signals, queries, updates"].approval

        async def scene(client: Client) -> tuple[str, str]:
            handle = await client.start(approval, id="cart-1")
            told = await client.run(guide[self.heading].notifier, "cart-1", id="w")
            return told, await handle.result()

        played = play(scene, approval, *guide.definitions(self.heading))
        assert played.result == ("told", "approved by a workflow")

    def test_one_that_does_not_exist(self, play: Play, guide: Guide) -> None:
        assert run(play, guide, self.heading, "notifier", "cart-2") == "no such workflow is open"


def test_continue_as_new(play: Play, guide: Guide) -> None:
    played = play(guide["Continue as new"].count, *guide.definitions("Continue as new"))
    assert played.result == 15
    assert [type(run.events[-1]).__name__ for run in played.runs] == ["ContinuedAsNew"] * 2 + ["WorkflowCompleted"]


class TestRetries:
    heading = "Retries, deadlines, delays of workflows"

    def test_the_third_attempt_succeeds_after_the_delay(self, play: Play, guide: Guide) -> None:
        played = play(guide[self.heading].start_fragile, *guide.definitions(self.heading))
        assert played.result == 3
        assert play.performances[0].seconds >= 10 + 1 + 2

    def test_the_deadline_covers_all_attempts(self, play: Play, guide: Guide) -> None:
        async def scene(client: Client) -> bool:
            with pytest.raises(WorkflowTimedOutError):
                await client.run(guide["Timers and timeouts"].delivery, "Bob", execution_timeout=40)
            return True

        assert play(scene, *guide.definitions("Timers and timeouts")).result


@workflow
async def told_something() -> list[str]:
    heard: list[str] = []

    @workflow.signal
    def hear(word: str) -> None:
        heard.append(word)

    @workflow.update
    async def wait() -> None:
        await trio.sleep_forever()

    await trio.sleep(20)
    if workflow.info().attempt == 1:
        raise ApplicationError("not yet")
    return heard


def test_a_new_attempt_begins_with_what_the_first_one_began_with(play: Play) -> None:
    async def scene(client: Client) -> list[str]:
        policy = RetryPolicy(initial_interval=60)
        handle = await client.start(told_something, id="w", retry_policy=policy, start_signal=("hear", ("first",)))
        await handle.signal("hear", "second")
        with pytest.raises(UpdateFailedError, match="ended before"):
            await handle.update("wait")
        await handle.signal("hear", "third")
        return await handle.result()

    assert play(scene, told_something).result == ["first", "third"]


def test_in_a_unit_test_a_workflow_is_a_trio_program_and_what_only_runs_have_says_so(guide: Guide) -> None:
    assert trio.run(guide["Trio"].pack.fn, ["tea"]) == ["parcel with tea"]
    fan_out = guide["Futures and fan-out"]
    for flow, arguments in ((fan_out.cheapest, ("tea", ["shop"])), (fan_out.ship_all, (["tea"],))):
        with pytest.raises(RuntimeError, match="only in the code of a running workflow"):
            trio.run(flow.fn, *arguments)


class TestChangingCode:
    before, both, deprecated, forgotten = (
        "Before",
        "Step 1: both sides",
        "Step 2: the old side is gone",
        "Step 3: forgotten",
    )

    @pytest.mark.parametrize(
        ("began", "goes_on", "letters", "markers"),
        [
            (before, both, 0, 0),
            (both, both, 1, 1),
            (both, deprecated, 1, 1),
            (deprecated, deprecated, 1, 1),
            (deprecated, forgotten, 1, 1),
            (forgotten, forgotten, 1, 0),
        ],
    )
    def test_a_run_goes_on_in_the_next_version(
        self, play: Play, guide: Guide, began: str, goes_on: str, letters: int, markers: int
    ) -> None:
        async def scene(client: Client) -> str:
            await play.deploy(*guide.definitions(began))
            handle = await client.start(guide[began].welcome, "Bob", id="w")
            await trio.sleep(10)
            await play.deploy(*guide.definitions(goes_on))
            receipt: str = await handle.result()
            return receipt

        played = play(scene, *guide.definitions(began))
        assert played.result == "Bob paid 1.00"
        assert played.calls("write_to") == letters
        assert len(played.events("w", MarkerRecorded)) == markers

    @pytest.mark.parametrize(
        ("began", "too_early"), [(before, deprecated), (before, forgotten), (both, forgotten), (both, before)]
    )
    def test_a_step_taken_too_early_blocks_the_run_and_the_code_before_heals_it(
        self, guide: Guide, began: str, too_early: str
    ) -> None:
        play = Play("live")

        async def scene(client: Client) -> str:
            handle = await client.start(guide[began].welcome, "Bob", id="w")
            await trio.sleep(10)
            await play.deploy(*guide.definitions(too_early))
            while (await handle.describe()).status != "blocked":  # noqa: ASYNC110 - in another process
                await trio.sleep(0.5)
            await play.deploy(*guide.definitions(began))
            receipt: str = await handle.result()
            return receipt

        assert play(scene, *guide.definitions(began)).result == "Bob paid 1.00"


def test_the_limits_are_those_of_the_code() -> None:
    _, table = GUIDE.read_text().split("## Limits\n")
    rows = dict(re.findall(r"^\| (\w.+?) \| (.+?) \|", table, flags=re.MULTILINE))
    said = {label: int(words.split(maxsplit=1)[0].replace(",", "")) for label, words in rows.items() if label in LIMITS}
    assert said == LIMITS
    assert f"becomes true at {SUGGESTED_EVENTS:,} events" in GUIDE.read_text()
    assert MAX_PENDING_CHILDREN == MAX_PENDING_REQUESTS
    assert MAX_RECENT_REQUESTS == MAX_UPDATE_OUTCOMES


def test_the_snippets_have_the_types_they_say(guide: Guide, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}"]
    done = subprocess.run(
        [*command, "--follow-imports=silent", *map(str, guide.files.values())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_function_of_the_guide_is_run_by_a_test_of_this_file(guide: Guide) -> None:
    nodes = [node for path in guide.files.values() for node in ast.walk(ast.parse(path.read_text()))]
    defined = {node.name for node in nodes if isinstance(node, ast.AsyncFunctionDef | ast.ClassDef)}
    used = {node.id for node in nodes if isinstance(node, ast.Name)}  # by another snippet
    methods = {"run", "take", "packer", "on_checkout"}
    mine = Path(__file__).read_text()
    assert {name for name in defined - used - methods if not re.search(rf"\b{name}\b", mine)} == set()
