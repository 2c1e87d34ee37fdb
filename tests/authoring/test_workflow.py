from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

import pytest

from durablefuture_trio import workflow
from durablefuture_trio.authoring import WorkflowDefinition, definition_of
from durablefuture_trio.authoring._children import ChildStart
from durablefuture_trio.authoring._runtime import WorkflowInfo, current_run
from durablefuture_trio.errors import PayloadError
from durablefuture_trio.history.options import ActivityOptionsRecord


@dataclass
class Receipt:
    total: float


@workflow
async def order(customer: str, amount: float = 1.0) -> Receipt:
    """Sell something."""
    return Receipt(amount)


@workflow(name="count-up")
class Counter:
    """Counts."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self, start: int, step: int = 1) -> list[int]:
        self.count = start + step
        return [self.count]


class FakeRun:
    """A run with fixed answers."""

    info = WorkflowInfo(workflow_id="w", run_id="r", workflow="order", started_at=5.0, history_length=7)

    def __init__(self, *, replaying: bool = False) -> None:
        self._replaying = replaying
        self._random = Random(1)
        self.children: list[ChildStart] = []

    def now(self) -> float:
        return 1_000_000_000.25

    def random(self) -> Random:
        return self._random

    def uuid4(self) -> UUID:
        return UUID(int=4)

    def replaying(self) -> bool:
        return self._replaying

    def call_activity(
        self, name: str, arguments: tuple[Any, ...], options: ActivityOptionsRecord, result_type: Any
    ) -> Awaitable[Any]:
        raise NotImplementedError

    async def call_child(self, start: ChildStart) -> str:
        self.children.append(start)
        return f"result of {start.target.name}"


@pytest.fixture
def run() -> Iterator[FakeRun]:
    fake = FakeRun()
    token = current_run.set(fake)
    yield fake
    current_run.reset(token)


def test_a_definition_looks_like_its_function() -> None:
    assert order.name == "order"
    assert order.__doc__ == "Sell something."
    assert order.parameter_hints == (str, float)
    assert order.result_hint is Receipt


async def test_the_function_itself_can_be_awaited_in_a_unit_test() -> None:
    assert await order.fn("Bob", 5) == Receipt(5)


def test_a_call_outside_of_a_workflow_names_client_run_and_fn() -> None:
    with pytest.raises(RuntimeError, match=r"client\.run\(order, \.\.\.\).*order\.fn"):
        order("Bob")


async def test_a_call_inside_a_workflow_starts_a_child_with_checked_arguments(run: FakeRun) -> None:
    with pytest.raises(TypeError, match="missing argument 'customer'"):
        order()
    with pytest.raises(PayloadError, match=r"do not fit workflow order\(customer, amount\)"):
        order(5)
    assert await order("Bob") == "result of order"
    (start,) = run.children
    assert (start.target.name, start.target.arguments.data) == ("order", b'["Bob",1.0]')
    assert start.target.result_type is Receipt


async def test_a_decorated_class_stays_that_class() -> None:
    assert isinstance(Counter, type)
    assert Counter.__doc__ == "Counts."
    assert await Counter().run(1) == [2]
    definition = definition_of(Counter)
    assert isinstance(definition, WorkflowDefinition)
    assert definition.name == "count-up"
    assert definition.parameter_hints == (int, int)
    assert definition.result_hint == list[int]
    assert definition.bind_arguments((1,)) == (1, 1)
    assert await definition.fn(5, 2) == [7]


def test_a_subclass_is_no_workflow_unless_it_is_decorated_too() -> None:
    class Child(Counter):
        pass

    assert definition_of(Child) is None


def test_arguments_are_checked_in_words() -> None:
    assert order.bind_arguments(("Bob",)) == ("Bob", 1.0)
    with pytest.raises(TypeError, match="workflow order is missing argument 'customer'"):
        order.bind_arguments(())
    with pytest.raises(TypeError, match="workflow order takes 1 to 2 arguments"):
        order.bind_arguments((1, 2, 3))


class NoRun:
    pass


class PlainRun:
    def run(self) -> None: ...


class Needy:
    def __init__(self, number: int) -> None: ...

    async def run(self) -> None: ...


class Outer:
    class Inner:
        async def run(self) -> None: ...


async def keyword_only(*, number: int) -> None: ...


async def async_generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: None, "lambda, which has no name to find it by: write a def"),
        (NoRun.__init__, "goes onto a function written with def or async def"),
        (PlainRun.run, "does not go onto the method PlainRun.run"),
        (async_generator, "is a generator"),
        (keyword_only, "parameter 'number' is keyword-only"),
        (NoRun, "class NoRun needs an `async def run(self, ...)`"),
        (PlainRun, "class PlainRun needs an `async def run(self, ...)`"),
        (Needy, "class Needy is made without arguments"),
        (Outer.Inner, "nested class Outer.Inner: move it to module level"),
    ],
)
def test_what_cannot_be_a_workflow_is_refused_with_what_to_do(source: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        workflow(source)
    assert message in str(caught.value)


def test_a_plain_function_is_refused() -> None:
    with pytest.raises(TypeError, match="is a plain def, but a workflow awaits its steps: write `async def`"):

        @workflow  # type: ignore[type-var]
        def flow() -> None: ...


def test_function_and_options_together_are_refused() -> None:
    with pytest.raises(TypeError, match="either the function or options"):
        workflow(order.fn, name="x")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="name must be a non-empty string"):
        workflow(name="")


@pytest.mark.parametrize("helper", ["now", "info", "random", "uuid4"])
def test_helpers_work_only_in_a_workflow(helper: str) -> None:
    with pytest.raises(RuntimeError, match=rf"workflow\.{helper}\(\) works only in the code of a running workflow"):
        getattr(workflow, helper)()
    assert not workflow.in_workflow()


def test_helpers_ask_the_run(run: FakeRun) -> None:
    assert workflow.in_workflow()
    assert workflow.now() == datetime(2001, 9, 9, 1, 46, 40, 250_000, tzinfo=UTC)
    assert workflow.info() is FakeRun.info
    assert workflow.random() is run.random()
    assert workflow.uuid4() == UUID(int=4)


def test_the_logger_adds_the_ids_of_the_run(run: FakeRun, caplog: pytest.LogCaptureFixture) -> None:
    workflow.logger.warning("hello")
    [record] = caplog.records
    assert (vars(record)["workflow"], vars(record)["workflow_id"], vars(record)["run_id"]) == ("order", "w", "r")


def test_the_logger_is_silent_while_history_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    token = current_run.set(FakeRun(replaying=True))
    try:
        workflow.logger.error("again")
        assert not workflow.logger.isEnabledFor(logging.CRITICAL)
    finally:
        current_run.reset(token)
    assert not caplog.records
