"""Signals, updates, queries and cancels, as a run sees them, live and replayed."""

from __future__ import annotations

import contextlib
import gc
import random
import uuid
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from durablefuture_trio import (
    ApplicationError,
    PayloadError,
    RequestFailedError,
    SandboxViolationError,
    UpdateRejectedError,
    activity,
    workflow,
)
from durablefuture_trio import codec as _codec
from durablefuture_trio.engine.commands import (
    CancelActivity,
    CancelWorkflow,
    CompleteUpdate,
    CompleteWorkflow,
    ContinueAsNew,
    ScheduleActivity,
)
from durablefuture_trio.history.events import CallerRecord
from durablefuture_trio.ports.frames import Blocked, LoadRun, Missing, Query
from tests._support.conversation import (
    START,
    Conversation,
    answers_in,
    carried,
    carried_update,
    failure_of,
    next_run,
    result_of,
)


@activity
async def step(number: int) -> int:
    return number


@dataclass
class Approval:
    by: str
    level: int = 1


@workflow.signal
def approve(approval: Approval) -> None: ...


@workflow.signal(name="two-things")
def two_things(word: str, number: int = 7) -> None: ...


@workflow.signal
def poke() -> None: ...


@workflow.update
async def set_price(price: float) -> float: ...


@set_price.validator
def _price_is_positive(price: float) -> None:
    if price <= 0:
        raise ValueError("the price must be positive")


@workflow.query
def price() -> float: ...


def names_of(commands: list[Any]) -> list[str]:
    return [type(command).__name__ for command in commands]


# --- signals and their handlers ---------------------------------------------------------------------------------------


def test_a_signal_reaches_the_handler_of_a_declaration_with_its_types() -> None:
    @workflow
    async def main() -> str:
        approvals: list[Approval] = []

        @approve.handler
        def on_approve(approval: Approval) -> None:
            approvals.append(approval)

        await workflow.wait_until(lambda: len(approvals) == 2)
        return " ".join(f"{one.by}{one.level}" for one in approvals)

    story = Conversation(main)
    assert story.start() == []
    assert story.signal("approve", Approval("Ann")) == []
    assert result_of(story.signal("approve", {"by": "Bob", "level": 2})) == "Ann1 Bob2"
    story.assert_replays()


def test_a_closure_is_a_handler_from_where_it_is_written() -> None:
    @workflow
    async def main() -> list[int]:
        seen: list[int] = []

        @workflow.signal(name="add")
        def on_add(number: int) -> None:
            seen.append(number)

        await step(0)
        return seen

    story = Conversation(main)
    story.start()
    story.signal("add", 1)
    story.signal("add", 2)
    assert result_of(story.complete(1, 0)) == [1, 2]
    story.assert_replays()


@workflow
class Basket:
    """Handlers as methods."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self.closed = False

    @workflow.signal
    def add(self, item: str) -> None:
        if self.closed:
            raise ApplicationError("the basket is closed")
        self.items.append(item)

    @workflow.signal(name="close")
    async def on_close(self) -> None:
        await step(len(self.items))
        self.closed = True

    @workflow.query
    def content(self) -> list[str]:
        return self.items

    @workflow.update
    def rename(self, old: str, new: str) -> int:
        place = self.items.index(old)
        self.items[place] = new
        return place

    @rename.validator
    def _check_rename(self, old: str, new: str) -> None:
        if old not in self.items:
            raise KeyError(old)

    @two_things.handler
    def on_two_things(self, word: str, number: int) -> None:
        self.items.append(f"{word}{number}")

    async def run(self, first: str = "") -> list[str]:
        if first:
            self.items.append(first)
        await workflow.wait_until(lambda: self.closed)
        return self.items


def test_the_methods_of_a_class_are_handlers_before_run_begins() -> None:
    story = Conversation(Basket, ["milk"], signals=(carried("add", "bread"), carried("two-things", "w")))
    story.start()
    assert story.query("content") == ["bread", "w7", "milk"]
    story.signal("add", "tea")
    assert answers_in(story.update("u-1", "rename", "tea", "coffee")) == {"u-1": 3}
    (schedule,) = story.signal("close")
    assert isinstance(schedule, ScheduleActivity)
    assert result_of(story.complete(1, 0)) == ["bread", "w7", "milk", "coffee"]
    story.assert_replays()


def test_two_runs_of_a_class_have_objects_of_their_own() -> None:
    one, other = Conversation(Basket), Conversation(Basket)
    other.host, other.run_id = one.host, "run-2"
    one.start()
    other.start()
    one.signal("add", "bread")
    assert (one.query("content"), other.query("content")) == (["bread"], [])


def test_signals_that_come_before_their_handler_wait_for_it_in_order() -> None:
    @workflow
    async def main() -> list[int]:
        seen: list[int] = []
        await step(0)

        @workflow.signal
        def add(number: int) -> None:
            seen.append(number)

        assert seen == []  # not before the code that follows has had its say
        await step(1)
        return seen

    story = Conversation(main)
    story.start()
    for number in range(3):
        story.signal("add", number)
    story.complete(1, 0)
    story.signal("add", 3)
    assert result_of(story.complete(2, 0)) == [0, 1, 2, 3]
    story.assert_replays()


def test_an_async_handler_is_a_task_of_the_run_and_the_run_waits_for_it() -> None:
    @workflow
    async def main() -> str:
        word = "begun"

        @workflow.signal
        async def poke() -> None:
            nonlocal word
            await step(5)
            word = "poked"

        await trio.sleep(10)
        return word

    story = Conversation(main)
    story.start()
    story.signal("poke", after=1)
    assert story.fire() == []
    # The value is the function's; only the end waits.
    assert result_of(story.complete(1, 0, after=5)) == "begun"
    story.assert_replays()


def test_another_handler_of_the_name_takes_over() -> None:
    @workflow
    async def main() -> list[str]:
        answers: list[str] = []

        async def ask(question: str) -> str:
            answer = ""

            @workflow.signal
            def reply(text: str) -> None:
                nonlocal answer
                answer = f"{question}:{text}"

            return await workflow.wait_until(lambda: answer)

        for question in ("a", "b"):
            answers.append(await ask(question))  # noqa: PERF401 - each with a handler of its own
        return answers

    story = Conversation(main)
    story.start()
    story.signal("reply", "1")
    assert result_of(story.signal("reply", "2")) == ["a:1", "b:2"]
    story.assert_replays()


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_exception_in_the_handler_of_a_signal_fails_the_run(kind: str) -> None:
    @workflow
    async def main() -> None:
        @workflow.signal
        def plain() -> None:
            raise ApplicationError("no", type="Refused")

        @workflow.signal
        async def later() -> None:
            await step(1)
            raise ApplicationError("no", type="Refused")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)

    story = Conversation(main)
    story.start()
    if kind == "def":
        story.signal("plain")
    else:
        story.signal("later")
        story.complete(1, 1)
    error = failure_of(story.commands)
    assert isinstance(error, ApplicationError)
    assert (error.message, error.type) == ("no", "Refused")
    story.assert_replays()


def test_an_undecodable_signal_is_told_of_and_left_out() -> None:
    @workflow
    async def main() -> list[int]:
        seen: list[int] = []

        @workflow.signal
        def add(number: int) -> None:
            seen.append(number)

        await workflow.wait_until(lambda: seen)
        return seen

    story = Conversation(main)
    story.start()
    for wrong in (("one",), (), (1, 2)):
        assert story.signal("add", *wrong) == []
        (line,) = story.lines
        assert "signal 'add' was left out" in line
    assert result_of(story.signal("add", 1)) == [1]
    story.assert_replays()


def test_what_a_failing_run_did_not_finish_is_told() -> None:
    @workflow
    async def main() -> None:
        @workflow.signal
        async def poke() -> None:
            await trio.sleep_forever()

        await step(0)

    story = Conversation(main)
    story.start()
    story.signal("poke")
    story.update("u-1", "nobody")
    story.fail(1)
    assert story.commands[-1].__class__.__name__ == "FailWorkflow"
    (line,) = story.lines
    assert "signal 'poke'" in line
    assert "update 'nobody' (u-1)" in line
    story.assert_replays()


def test_signals_that_nobody_took_are_told_of_at_the_end() -> None:
    @workflow
    async def main() -> None:
        await step(0)

    story = Conversation(main)
    story.start()
    for name in ("b", "a", "b"):
        story.signal(name, 1)
    assert isinstance(story.complete(1, 0)[-1], CompleteWorkflow)
    assert story.lines == ["the run of main ended, and nobody had taken these: signal 'a' (1), signal 'b' (2)"]
    story.assert_replays()


def test_a_module_imported_by_workflow_code_only_declares(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "declares_late.py").write_text(
        "from durablefuture_trio import workflow\n\n@workflow.signal\ndef late(number: int) -> None: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    @workflow
    async def main() -> int:
        from declares_late import late  # type: ignore[import-not-found]

        async with workflow.signal_channel(late) as channel:
            value: int = await channel.receive()
        return value

    story = Conversation(main)
    story.start()
    assert result_of(story.signal("late", 5)) == 5


# --- channels ---------------------------------------------------------------------------------------------------------


def test_a_channel_gives_signals_from_before_it_was_opened_and_after() -> None:
    @workflow
    async def main() -> list[Any]:
        await step(0)
        async with workflow.signal_channel(approve) as approvals:
            first = await approvals.receive()
            second = await approvals.receive()
        return [first.by, second.level]

    story = Conversation(main)
    story.start()
    story.signal("approve", Approval("Ann"))
    story.complete(1, 0)
    assert result_of(story.signal("approve", Approval("Bob", 3))) == ["Ann", 3]
    story.assert_replays()


def test_the_value_of_a_channel_is_the_argument_or_the_tuple_of_them() -> None:
    @workflow
    async def main() -> list[Any]:
        values: list[Any] = []
        async with workflow.signal_channel(two_things) as several, workflow.signal_channel(poke) as none:
            values += [await several.receive(), await several.receive(), await none.receive()]
        async with workflow.signal_channel("named", type=Approval) as named:
            values.append((await named.receive()).by)
        async with workflow.signal_channel("pairs", type=tuple[int, Approval]) as pairs:
            number, approval = await pairs.receive()
            values.append((number, approval.by))
        async with workflow.signal_channel("any") as anything:
            values += [await anything.receive(), await anything.receive(), await anything.receive()]
        return values

    story = Conversation(main)
    story.start()
    story.signal("two-things", "w", 1)
    story.signal("two-things", "x")
    story.signal("poke")
    story.signal("named", {"by": "Ann"})
    story.signal("pairs", 5, {"by": "Bob"})
    story.signal("any")
    story.signal("any", [1])
    assert result_of(story.signal("any", 1, 2)) == [
        ["w", 1], ["x", 7], None, "Ann", [5, "Bob"], None, [1], [1, 2],
    ]  # fmt: skip
    story.assert_replays()


def test_a_channel_leaves_out_what_does_not_fit_and_tells_of_it() -> None:
    @workflow
    async def main() -> int:
        async with workflow.signal_channel("number", type=int) as numbers:
            return await numbers.receive()

    story = Conversation(main)
    story.start()
    assert story.signal("number", "one") == []
    assert "signal 'number' was left out" in story.lines[0]
    assert result_of(story.signal("number", 1)) == 1
    story.assert_replays()


def test_a_cancelled_receive_loses_no_signal() -> None:
    @workflow
    async def main() -> list[Any]:
        got: list[Any] = []
        numbers = workflow.signal_channel("number", type=int)
        for _ in range(3):
            with trio.move_on_after(10) as scope:
                got.append(await numbers.receive())
            if scope.cancelled_caught:
                got.append(None)
        return got

    story = Conversation(main)
    story.start()
    story.fire()
    # At the very moment the scope's time is up.
    story.signal("number", 1, after=10)
    assert result_of(story.signal("number", 2)) in ([None, 1, 2], [None, None, 1])
    story.assert_replays()


def test_several_receivers_share_the_signals_and_none_is_forgotten() -> None:
    @workflow
    async def main() -> list[tuple[str, int]]:
        got: list[tuple[str, int]] = []

        async def consume(name: str, count: int) -> None:
            with workflow.signal_channel("number", type=int) as numbers:  # type: ignore[attr-defined]
                for _ in range(count):
                    got.append((name, await numbers.receive()))  # noqa: PERF401 - in the order they come

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume, "a", 1)
            nursery.start_soon(consume, "b", 2)
        return got

    story = Conversation(main)
    story.start()
    story.signal("number", 1)
    story.signal("number", 2)
    assert result_of(story.signal("number", 3)) == [["a", 1], ["b", 2], ["b", 3]]
    story.assert_replays()


def test_a_closed_channel_keeps_nothing_from_the_next() -> None:
    @workflow
    async def main() -> list[Any]:
        first = workflow.signal_channel("number", type=int)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await first.receive()

            nursery.start_soon(wait)
            await step(0)
            await first.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await first.receive()
        await step(1)
        second = workflow.signal_channel("number", type=int)
        return [await second.receive()]

    story = Conversation(main)
    story.start()
    story.complete(1, 0)
    story.signal("number", 4)
    assert result_of(story.complete(2, 0)) == [4]
    story.assert_replays()


def test_a_signal_goes_to_a_channel_or_to_a_handler() -> None:
    @workflow
    async def channel_first() -> None:
        async with workflow.signal_channel(poke):

            @poke.handler
            def on_poke() -> None: ...

    @workflow
    async def handler_first() -> None:
        @poke.handler
        def on_poke() -> None: ...

        workflow.signal_channel(poke)

    assert "signal_channel that is open" in str(failure_of(Conversation(channel_first).start()))
    assert "use one of the two" in str(failure_of(Conversation(handler_first).start()))


# --- conditions -------------------------------------------------------------------------------------------------------


def test_wait_until_gives_what_the_predicate_returned_and_holds_when_it_returns() -> None:
    @workflow
    async def shop() -> list[str]:
        stock: list[str] = []
        sold: list[str] = []

        @workflow.signal
        def deliver(items: list[str]) -> None:
            stock.extend(items)

        async def sell(customer: str) -> None:
            got = await workflow.wait_until(lambda: stock and stock[0])
            stock.pop(0)
            sold.append(f"{customer}:{got}")

        async with trio.open_nursery() as nursery:
            for customer in ("Ann", "Bob", "Cid"):
                nursery.start_soon(sell, customer)
        return sold

    story = Conversation(shop)
    story.start()
    story.signal("deliver", ["a"])
    assert result_of(story.signal("deliver", ["b", "c"])) == ["Ann:a", "Bob:b", "Cid:c"]
    story.assert_replays()


def test_a_condition_on_the_time_is_looked_at_when_time_moves() -> None:
    @workflow
    async def main() -> float:
        begin = workflow.now()
        await workflow.wait_until(lambda: (workflow.now() - begin).total_seconds() >= 5)
        return trio.current_time()

    story = Conversation(main)
    story.start()
    assert story.wake_at is None
    assert story.later(3) == []
    assert result_of(story.later(3)) == START + 6
    story.assert_replays()


def test_a_condition_that_holds_for_one_step_of_another_task_is_seen() -> None:
    @workflow
    async def main() -> int:
        value = 0

        async def change() -> None:
            nonlocal value
            await step(0)
            for _ in range(5):
                value += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            seen: int = await workflow.wait_until(lambda: value)
        return seen

    story = Conversation(main)
    story.start()
    assert result_of(story.complete(1, 0)) == 1
    story.assert_replays()


def test_an_exception_of_the_predicate_is_the_waiters() -> None:
    @workflow
    async def main() -> str:
        table: dict[str, int] = {"a": 0}
        outcome = ""

        @workflow.signal
        def clear() -> None:
            table.clear()

        try:
            await workflow.wait_until(lambda: table["a"])
        except KeyError:
            outcome = "gone"
        return outcome

    story = Conversation(main)
    story.start()
    assert result_of(story.signal("clear")) == "gone"
    story.assert_replays()


def test_a_wait_for_a_condition_can_be_cancelled_and_async_predicates_are_refused() -> None:
    @workflow
    async def main() -> list[str]:
        words = []
        with trio.move_on_after(5):
            await workflow.wait_until(lambda: False)
        words.append("moved on")

        async def wrong() -> bool:
            return True

        for predicate in (wrong, lambda: wrong()):  # noqa: PLW0108 - nobody can see that it is async
            try:
                await workflow.wait_until(predicate)
            except TypeError as error:
                words.append(str(error)[:40])
        return words

    story = Conversation(main)
    story.start()
    words = result_of(story.fire())
    assert words == ["moved on", *["wait_until takes a plain function that l"] * 2]
    story.assert_replays()


# --- updates ----------------------------------------------------------------------------------------------------------


@workflow
async def pricing(start: float = 1.0) -> float:
    """An update by its declaration, with the validator there."""
    current = start
    done = False

    @set_price.handler
    async def on_set_price(price: float) -> float:
        nonlocal current
        before, current = current, price
        await step(int(price))
        if price > 100:
            raise ApplicationError("too dear", type="TooDear")
        return before

    @price.handler
    def on_price() -> float:
        return current

    @workflow.signal
    def stop() -> None:
        nonlocal done
        done = True

    await workflow.wait_until(lambda: done)
    return current


def test_an_update_is_answered_when_its_handler_has_returned() -> None:
    story = Conversation(pricing)
    story.start()
    (schedule,) = story.update("u-1", "set_price", 5)
    assert isinstance(schedule, ScheduleActivity)
    assert answers_in(story.complete(1, 5)) == {"u-1": 1.0}
    assert story.query("price") == 5.0
    assert result_of(story.signal("stop")) == 5.0
    story.assert_replays()


def test_an_exception_in_the_handler_of_an_update_fails_the_update_alone() -> None:
    story = Conversation(pricing)
    story.start()
    story.update("u-1", "set_price", 500)
    error = answers_in(story.complete(1, 5))["u-1"]
    assert isinstance(error, ApplicationError)
    assert (error.type, error.message) == ("TooDear", "too dear")
    assert result_of(story.signal("stop")) == 500.0
    story.assert_replays()


def test_a_run_that_returns_waits_for_its_updates_and_answers_them_before_its_end() -> None:
    story = Conversation(pricing)
    story.start()
    story.update("u-1", "set_price", 5)
    story.update("u-2", "set_price", 6)
    assert story.signal("stop") == []
    assert answers_in(story.complete(2, 6)) == {"u-2": 5.0}
    commands = story.complete(1, 5)
    assert names_of(commands) == ["CompleteUpdate", "CompleteWorkflow"]
    story.assert_replays()


def test_commands_leave_in_the_order_they_were_asked_for() -> None:
    @workflow
    async def main() -> None:
        @workflow.update
        async def work() -> str:
            future = step.submit(1)
            await trio.lowlevel.checkpoint()
            del future
            return "done"

        await workflow.wait_until(lambda: False)

    story = Conversation(main)
    story.start()
    assert names_of(story.update("u-1", "work")) == ["ScheduleActivity", "CompleteUpdate"]
    story.assert_replays()


def test_a_validator_refuses_without_a_trace_and_admits_what_has_no_handler_yet() -> None:
    story = Conversation(pricing)
    story.start()
    with pytest.raises(ApplicationError, match="the price must be positive"):
        story.validate("set_price", -1)
    with pytest.raises(PayloadError):
        story.validate("set_price", "dear")
    story.validate("set_price", 2)
    story.validate("no such update", 2)
    story.assert_replays()


def test_a_validator_is_not_asked_again_once_the_update_is_accepted() -> None:
    """Code with a stricter validator can replay what an older one has let in."""
    story = Conversation(pricing)
    story.start()
    (schedule,) = story.update("u-1", "set_price", -1)
    assert isinstance(schedule, ScheduleActivity)


def test_an_update_that_came_before_its_handler_is_validated_when_that_appears() -> None:
    @workflow
    async def main() -> list[int]:
        seen: list[int] = []
        await step(0)

        @workflow.update
        def push(number: int) -> int:
            seen.append(number)
            return len(seen)

        @push.validator
        def check(number: int) -> None:
            if number < 0:
                raise ValueError("negative")

        await step(1)
        return seen

    story = Conversation(main)
    story.start()
    assert story.update("u-1", "push", -1) == []
    assert story.update("u-2", "push", 5) == []
    assert story.update("u-3", "push", "five") == []
    commands = story.complete(1, 0)
    assert names_of(commands)[-1] != "CompleteWorkflow"
    answers = answers_in(commands)
    assert answers["u-2"] == 1
    refused = answers["u-1"]
    assert isinstance(refused, UpdateRejectedError)
    assert refused.message == "update 'push' was refused: negative"
    assert isinstance(refused.cause, ApplicationError)
    assert isinstance(answers["u-3"], UpdateRejectedError)
    assert result_of(story.complete(2, 0)) == [5]
    story.assert_replays()


def test_what_an_update_returns_and_cannot_be_recorded_fails_it() -> None:
    @workflow
    async def main() -> None:
        @workflow.update
        def odd() -> Any:
            return object()

        await workflow.wait_until(lambda: False)

    story = Conversation(main)
    story.start()
    assert isinstance(answers_in(story.update("u-1", "odd"))["u-1"], PayloadError)
    story.assert_replays()


def test_a_sandbox_violation_in_an_update_blocks_the_run() -> None:
    @workflow
    async def main() -> None:
        @workflow.update
        def read() -> str:
            with open("/etc/hostname") as file:
                return file.read()

        await workflow.wait_until(lambda: False)

    story = Conversation(main)
    story.start()
    with pytest.raises(AssertionError) as caught:
        story.update("u-1", "read")
    answer = caught.value.args[0]
    assert isinstance(answer, Blocked)
    assert answer.kind == "sandbox_violation"


# --- queries ----------------------------------------------------------------------------------------------------------


def test_an_unknown_query_names_the_known_ones() -> None:
    story = Conversation(Basket)
    story.start()
    with pytest.raises(RequestFailedError, match=r"no query 'contents'\. It has: content\."):
        story.query("contents")
    with pytest.raises(RequestFailedError, match="do not fit query 'content'"):
        story.query("content", 1, 2)
    story.assert_replays()


def test_a_query_raises_what_its_handler_raises_and_the_run_goes_on() -> None:
    @workflow
    async def main() -> int:
        @workflow.query
        def ratio(number: int) -> float:
            return 1 / number

        return await step(1)

    story = Conversation(main)
    story.start()
    with pytest.raises(ApplicationError, match="division by zero"):
        story.query("ratio", 0)
    assert story.query("ratio", 4) == 0.25
    assert result_of(story.complete(1, 1)) == 1
    story.assert_replays()


def _open_a_file() -> Any:
    with open("/etc/hostname") as file:
        return file.read()


async def _never() -> None: ...


CHANGES: dict[str, Any] = {
    "workflow.random()": lambda _: workflow.random().random(),
    "workflow.uuid4()": lambda _: str(workflow.uuid4()),
    "random.random()": lambda _: random.random(),
    "uuid.uuid4()": lambda _: str(uuid.uuid4()),
    "an activity, submitted": lambda _: step.submit(1).done(),
    "an activity, called": lambda _: step(1),
    "a signal_channel": lambda _: workflow.signal_channel("other") and None,
    "a patch": lambda _: workflow.patched("new"),
    "a file": lambda _: _open_a_file(),
    "a coroutine": lambda _: workflow.wait_until(lambda: True),
    "an event": lambda scope: scope["event"].set(),
    "a cancel": lambda scope: scope["scope"].cancel(),
    "a deadline": lambda scope: setattr(scope["scope"], "deadline", trio.current_time() + 1),
    "a task": lambda scope: scope["nursery"].start_soon(_never),
    "an activity, and the error swallowed": lambda _: _swallow(lambda: step.submit(1)),
}


def _swallow(call: Any) -> str:
    with contextlib.suppress(Exception):
        call()
    return "nothing happened"


@pytest.mark.parametrize("what", CHANGES)
def test_a_query_that_would_change_the_run_is_refused_and_the_run_is_as_it_was(what: str) -> None:
    @workflow
    async def main() -> list[Any]:
        event = trio.Event()
        inside: dict[str, Any] = {"event": event}

        @workflow.query
        def look() -> Any:
            return CHANGES[what](inside)

        @workflow.query
        def fine() -> float:
            return trio.current_time()

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as inside["scope"]:
                inside["nursery"] = nursery
                nursery.start_soon(event.wait)
                await step(1)
            nursery.cancel_scope.cancel()
        return [workflow.random().random(), random.random()]

    story = Conversation(main)
    story.start()
    untouched = Conversation(main)
    untouched.start()
    with pytest.raises(SandboxViolationError) as caught:
        story.query("look")
    assert "only looks at what the run holds" in str(caught.value) or "open(" in str(caught.value)
    assert story.query("fine") == START  # loaded anew, if it was spoiled
    assert result_of(story.complete(1, 1)) == result_of(untouched.complete(1, 1))
    story.assert_replays()


def test_a_query_sees_the_state_of_the_activation_it_is_for() -> None:
    story = Conversation(Basket)
    story.start()
    ahead = Query(exchange=1, run_id="run-1", activation=2, name="content", arguments=_codec.encode_arguments(()))
    assert isinstance(story.host.handle(ahead)[0], Missing)
    story.load()
    story.signal("add", "milk")
    assert story.query("content") == ["milk"]


def test_a_closed_run_is_kept_for_a_query_when_it_is_loaded_for_one() -> None:
    story = Conversation(pricing)
    story.start()
    story.signal("stop")
    assert story.host.cached == ()
    assert story.query("price") == 1.0
    assert story.host.cached == ("run-1",)
    with pytest.raises(RequestFailedError, match="It has: price"):
        story.query("other")
    story.host.handle(LoadRun(exchange=1, run_id="run-1", commits=story.bodies(), first=True, last=True))
    assert story.host.cached == ()


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_a_cancel_that_nobody_stops_ends_the_run_with_its_reason() -> None:
    @workflow
    async def main() -> None:
        await step(1)

    story = Conversation(main)
    story.start()
    (cancel,) = story.cancel("changed my mind")
    assert isinstance(cancel, CancelActivity)
    (end,) = story.cancelled(1)
    assert end == CancelWorkflow(reason="changed my mind")
    story.assert_replays()


def test_a_shielded_scope_makes_good_what_was_done_and_the_run_ends_cancelled() -> None:
    @workflow
    async def main() -> None:
        try:
            await trio.sleep(100)
        finally:
            with trio.CancelScope(shield=True):
                await step(1)
                await trio.sleep(5)

    story = Conversation(main)
    story.start()
    (schedule,) = story.cancel("stop")
    assert isinstance(schedule, ScheduleActivity)
    assert story.cancel("again") == []
    assert story.complete(1, 1, after=1) == []
    assert story.fire() == [CancelWorkflow(reason="stop")]
    story.assert_replays()


def test_a_run_may_return_or_raise_after_all() -> None:
    @workflow
    async def main(how: str) -> str:
        try:
            await trio.sleep(100)
        except trio.Cancelled:
            assert workflow.cancel_reason() == "stop"
            if how == "raise":
                raise ApplicationError("half done") from None
            return "made the best of it"
        return ""

    story = Conversation(main, ["return"])
    story.start()
    assert result_of(story.cancel("stop")) == "made the best of it"
    story.assert_replays()
    story = Conversation(main, ["raise"])
    story.start()
    assert str(failure_of(story.cancel("stop"))) == "half done"
    story.assert_replays()


def test_a_cancel_is_level_triggered_and_met_at_every_checkpoint() -> None:
    @workflow
    async def main() -> list[str]:
        met: list[str] = []
        for number in range(3):
            try:
                await trio.sleep(100)
            except trio.Cancelled:
                met.append(f"{number}")
        return met

    story = Conversation(main)
    story.start()
    assert result_of(story.cancel()) == ["0", "1", "2"]
    story.assert_replays()


def test_a_cancel_right_after_the_start_and_before_it_are_not_lost() -> None:
    began: list[str] = []

    @workflow
    async def main() -> None:
        began.append("main")
        await step(1)

    story = Conversation(main)
    assert names_of(story.start()) == ["ScheduleActivity"]
    story.cancel("early")
    assert story.cancelled(1) == [CancelWorkflow(reason="early")]
    story.assert_replays()
    # Carried from the run before: met at the first checkpoint. The call never happened.
    story = Conversation(main, cancel_reason="earlier")
    assert story.start() == [CancelWorkflow(reason="earlier")]
    story.assert_replays()


def test_a_cancel_and_a_result_at_the_same_moment_lose_neither() -> None:
    @workflow
    async def main() -> list[Any]:
        kept: list[Any] = []
        try:
            kept.append(await step(1))
            await trio.sleep(100)
        finally:
            with trio.CancelScope(shield=True):
                kept.append(await step(2))
        return kept

    story = Conversation(main)
    story.start()
    story.complete(1, 1)
    assert names_of(story.cancel("now")) == ["ScheduleActivity"]
    assert story.complete(2, 2) == [CancelWorkflow(reason="now")]
    story.assert_replays()
    other = Conversation(main)
    other.start()
    assert names_of(other.cancel("now")) == ["CancelActivity"]
    # The attempt was quicker than its cancel.
    assert names_of(other.complete(1, 1)) == ["ScheduleActivity"]
    assert other.complete(2, 2) == [CancelWorkflow(reason="now")]
    other.assert_replays()


def test_a_cancel_ends_handlers_too_and_says_which_were_not_finished() -> None:
    story = Conversation(pricing)
    story.start()
    story.update("u-1", "set_price", 5)
    story.cancel("enough")
    (end,) = story.cancelled(1)
    assert end == CancelWorkflow(reason="enough")
    assert "update 'set_price' (u-1)" in story.lines[0]
    story.assert_replays()


def test_a_real_failure_beside_the_cancel_wins() -> None:
    @workflow
    async def main() -> None:
        async def clean_up() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ApplicationError("clean-up failed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(clean_up)
            nursery.start_soon(trio.sleep_forever)

    story = Conversation(main)
    story.start()
    assert str(failure_of(story.cancel())) == "clean-up failed"
    story.assert_replays()


def test_cancel_reason_is_none_until_somebody_cancels() -> None:
    @workflow
    async def main() -> list[Any]:
        reasons: list[Any] = [workflow.cancel_reason()]
        with trio.CancelScope(shield=True):
            await step(1)
        reasons.append(workflow.cancel_reason())
        return reasons

    story = Conversation(main)
    story.start()
    story.cancel("")
    story.cancel("later reasons do not count")
    assert result_of(story.complete(1, 1)) == [None, ""]
    story.assert_replays()


# --- starts that are put off, and what is carried over ----------------------------------------------------------------


def test_a_start_that_is_put_off_sleeps_first_and_keeps_what_comes() -> None:
    began: list[float] = []

    @workflow
    async def main() -> int:
        began.append(trio.current_time())
        async with workflow.signal_channel("number", type=int) as numbers:
            return await numbers.receive()

    story = Conversation(main, not_before=START + 60)
    assert story.start() == []
    assert story.wake_at == START + 60
    assert story.signal("number", 5, after=10) == []
    with pytest.raises(RequestFailedError, match="none so far"):
        story.query("anything")
    assert began == []
    assert result_of(story.fire()) == 5
    assert began == [START + 60]
    story.assert_replays()


def test_a_start_that_is_put_off_can_be_cancelled_before_its_code_begins() -> None:
    began: list[str] = []

    @workflow
    async def main() -> None:
        began.append("main")

    story = Conversation(main, not_before=START + 60)
    story.start()
    assert story.cancel("no longer") == [CancelWorkflow(reason="no longer")]
    assert began == []
    story.assert_replays()


def test_a_start_that_was_put_off_until_now_begins_at_once() -> None:
    @workflow
    async def main() -> str:
        return "begun"

    assert result_of(Conversation(main, not_before=START).start()) == "begun"


@workflow
async def chain(numbers: list[int], rounds: int) -> list[int]:
    """Takes one number a round, the rest is for the next run."""

    @workflow.query
    def so_far() -> list[int]:
        return numbers

    async with workflow.signal_channel("number", type=int) as channel:
        numbers = [*numbers, await channel.receive()]
    if rounds == 1:
        return numbers
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        workflow.continue_as_new(numbers, rounds - 1)
    raise AssertionError


def test_what_a_run_did_not_take_goes_on_to_the_next_in_order() -> None:
    @workflow
    async def busy() -> None:
        await step(1)

    story = Conversation(chain, [[], 3], signals=(carried("other", 0), carried("number", 1), carried("number", 2)))
    (end,) = story.start()
    assert isinstance(end, ContinueAsNew)
    assert [one.name for one in end.signals] == ["other", "number"]
    story.assert_replays()
    second = next_run(story, chain)
    second.start()
    third = next_run(second, chain)
    assert [one.name for one in third.started().signals] == ["other"]
    third.start()
    assert result_of(third.signal("number", 3)) == [1, 2, 3]


def test_updates_that_were_not_completed_go_on_and_are_answered_by_the_next_run() -> None:
    @workflow
    async def main(number: int) -> int:
        finish = False

        @workflow.update
        async def double(value: int) -> int:
            await step(value)
            return value * 2

        @workflow.signal
        async def end() -> None:
            nonlocal finish
            finish = True
            if number == 2:
                await trio.sleep(1)

        await workflow.wait_until(lambda: finish)
        if number == 1:
            workflow.continue_as_new(number + 1)
        return number

    story = Conversation(main, [1])
    story.start()
    story.update("u-0", "nobody", 1)
    story.update("u-1", "double", 5)
    (cancel,) = story.signal("end")
    assert isinstance(cancel, CancelActivity)
    (end,) = story.cancelled(1)
    assert isinstance(end, ContinueAsNew)
    assert [one.update_id for one in end.updates] == ["u-0", "u-1"]
    assert story.lines == []
    story.assert_replays()
    second = next_run(story, main)
    assert names_of(second.start()) == ["ScheduleActivity"]
    assert answers_in(second.complete(1, 5)) == {"u-1": 10}
    second.assert_replays()


def test_a_signal_at_the_moment_of_continue_as_new_is_in_one_of_the_runs() -> None:
    """The clock wakes the function and the signal comes in one activation: the arguments are made before its handler
    could run."""

    @workflow
    async def main(count: int) -> None:
        @workflow.signal
        def add() -> None:
            nonlocal count
            count += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep(10)
            workflow.continue_as_new(count)

    story = Conversation(main, [0])
    story.start()
    story.signal("add", after=5)
    (end,) = story.signal("add", after=5)
    assert isinstance(end, ContinueAsNew)
    (count,) = _codec.decode_arguments(end.arguments, (int,))
    assert count + len(end.signals) == 2
    story.assert_replays()


def test_the_handler_of_a_signal_that_continue_as_new_cuts_off_begins_anew() -> None:
    @workflow
    async def main(number: int) -> list[str]:
        done: list[str] = []

        @workflow.signal
        async def work(word: str) -> None:
            await trio.sleep(10)
            done.append(word)

        if number == 1:
            await step(1)
            workflow.continue_as_new(2)
        await workflow.wait_until(lambda: done)
        return done

    story = Conversation(main, [1])
    story.start()
    story.signal("work", "a")
    story.complete(1, 1)
    second = next_run(story, main)
    second.start()
    assert result_of(second.fire()) == ["a"]
    second.assert_replays()


def test_continue_as_new_in_an_update_is_refused_and_in_a_signal_ends_the_run() -> None:
    @workflow
    async def main() -> None:
        @workflow.update
        def renew() -> None:
            workflow.continue_as_new()

        @workflow.signal
        def restart() -> None:
            workflow.continue_as_new()

        await trio.sleep_forever()

    story = Conversation(main)
    story.start()
    story.signal("restart")
    (end,) = story.commands
    assert isinstance(end, ContinueAsNew)
    assert end.signals == ()
    story.assert_replays()
    other = Conversation(main)
    other.start()
    assert "continue_as_new" in str(answers_in(other.update("u-1", "renew"))["u-1"])
    (end,) = other.signal("restart")
    assert isinstance(end, ContinueAsNew)
    other.assert_replays()


def test_a_failure_beside_continue_as_new_wins() -> None:
    @workflow
    async def main() -> None:
        async def fails() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ApplicationError("broken")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            await step(1)
            workflow.continue_as_new()

    story = Conversation(main)
    story.start()
    assert str(failure_of(story.complete(1, 1))) == "broken"
    story.assert_replays()


def test_carried_messages_come_in_the_first_activation_cancel_first() -> None:
    seen: list[str] = []

    @workflow
    class Carrier:
        @workflow.signal
        def one(self) -> None:
            seen.append(f"signal {workflow.cancel_reason()}")

        @workflow.update
        def two(self) -> str:
            seen.append("update")
            return "done"

        async def run(self) -> None:
            seen.append("run")
            await trio.sleep(1)

    story = Conversation(
        Carrier,
        signals=(carried("one"), carried("one")),
        updates=(carried_update("u-1", "two"),),
        cancel_reason="before",
    )
    commands = story.start()
    assert seen == ["signal before", "signal before", "update", "run"]
    assert names_of(commands) == ["CompleteUpdate", "CancelWorkflow"]
    story.assert_replays()


def test_info_and_last_result_say_what_the_start_says() -> None:
    @workflow
    async def main() -> list[Any]:
        info = workflow.info()
        assert info.parent is not None
        return [
            info.attempt, info.parent.workflow_id, info.first_run_id, info.continued_from, info.memo,
            workflow.last_result(Approval).by, info.history_length,
        ]  # fmt: skip

    story = Conversation(
        main,
        attempt=3,
        parent=CallerRecord("mother", "run-0", 4),
        first_run_id="run-9",
        continued_from="run-8",
        memo=_codec.encode_value({"team": 1}),
        last_result=_codec.encode_value(Approval("Ann")),
    )
    assert result_of(story.start()) == [3, "mother", "run-9", "run-8", {"team": 1}, "Ann", 1]
    story.assert_replays()

    @workflow
    async def plain() -> list[Any]:
        info = workflow.info()
        return [info.attempt, info.parent, info.first_run_id, info.continued_from, info.memo, workflow.last_result()]

    assert result_of(Conversation(plain).start()) == [1, None, "run-1", None, None, None]


def test_messages_that_come_after_the_end_of_the_function_are_still_handled() -> None:
    @workflow
    async def main() -> int:
        @workflow.signal
        async def slow() -> None:
            await step(1)

        @workflow.update
        def count() -> int:
            return 1

        return 5

    story = Conversation(main, signals=(carried("slow"),))
    assert names_of(story.start()) == ["ScheduleActivity"]
    assert answers_in(story.update("u-1", "count")) == {"u-1": 1}
    commands = story.complete(1, 1)
    assert isinstance(commands[-1], CompleteWorkflow)
    assert not any(isinstance(command, CompleteUpdate) for command in commands)
    story.assert_replays()


@pytest.mark.parametrize("end", ["dropped", "finished", "cancelled", "asked when closed"])
def test_the_memory_of_a_run_with_messages_is_free_at_once_without_garbage_collection(end: str) -> None:
    @workflow
    class Full:
        def __init__(self) -> None:
            self.words: list[str] = []

        @workflow.signal
        async def slow(self, word: str) -> None:
            await step(1)
            self.words.append(word)

        @workflow.update
        async def change(self, word: str) -> str:
            await step(2)
            return word

        @workflow.query
        def content(self) -> list[str]:
            return self.words

        async def run(self) -> None:
            @workflow.signal
            def closure() -> None: ...

            async with workflow.signal_channel("other", type=int) as other, trio.open_nursery() as nursery:
                nursery.start_soon(other.receive)
                await workflow.wait_until(lambda: self.words)
                nursery.cancel_scope.cancel()

    gc.collect()
    gc.disable()
    try:
        story = Conversation(Full)
        story.start()
        story.signal("slow", "a")
        story.update("u-1", "change", "b")
        assert story.query("content") == []
        run = weakref.ref(story.host._runs["run-1"])  # type: ignore[attr-defined]
        if end == "cancelled":
            story.cancel()
            story.cancelled(1)
            story.cancelled(2)
        elif end != "dropped":
            story.complete(2, 2)
            assert isinstance(story.complete(1, 1)[-1], CompleteWorkflow)
        if end == "asked when closed":
            story.host.close_evicted()  # type: ignore[attr-defined]
            assert run() is None
            assert story.query("content") == ["a"]
            run = weakref.ref(story.host._runs["run-1"])  # type: ignore[attr-defined]
        story.host.close()  # type: ignore[attr-defined]
        assert run() is None
    finally:
        gc.enable()


def test_dropping_a_run_runs_no_handler_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    @workflow
    async def main() -> None:
        @workflow.update
        async def work() -> None:
            try:
                await step(1)
            finally:
                ended.append("handler left")
                with trio.CancelScope(shield=True):
                    await step(2)
                ended.append("never")

        try:
            await workflow.wait_until(lambda: False)
        finally:
            ended.append("main left")
            await workflow.wait_until(lambda: True)
            ended.append("never")

    story = Conversation(main)
    story.start()
    story.update("u-1", "work")
    story.host.close()  # type: ignore[attr-defined]
    assert sorted(ended) == ["handler left", "main left"]
    assert caplog.records == []
    story.assert_replays()
