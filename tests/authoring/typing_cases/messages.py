"""What type checkers have to say about signals, queries and updates. Every ignore has to be needed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, assert_type

from trio.abc import ReceiveChannel

from durablefuture_trio import ParentInfo, QueryDefinition, SignalDefinition, UpdateDefinition, workflow


@dataclass
class Approval:
    by: str


@workflow.signal
def approve(approval: Approval) -> None: ...


@workflow.signal(name="poke")
async def poke() -> None: ...


@workflow.signal
def pair(word: str, number: int) -> None: ...


@workflow.signal
def many(a: int, b: int, c: int, d: int, e: int) -> None: ...


@workflow.signal
def with_default(word: str, number: int = 5) -> None: ...


@workflow.query
def status(verbose: bool) -> list[str]:
    raise NotImplementedError


@workflow.query(name="other")
def named() -> int:
    raise NotImplementedError


@workflow.update
async def set_price(price: float) -> Approval:
    raise NotImplementedError


@set_price.validator
def _check(price: float) -> None: ...


@workflow.update(name="plain")
def plain(price: float) -> str:
    raise NotImplementedError


@workflow
class Order:
    def __init__(self) -> None:
        self.items: list[str] = []

    @workflow.signal
    def add(self, item: str) -> None:
        self.items.append(item)

    @workflow.signal(name="later")
    async def add_later(self, item: str) -> None: ...

    @workflow.query
    def content(self) -> list[str]:
        return self.items

    @workflow.update
    async def remove(self, item: str) -> int:
        return len(self.items)

    @remove.validator
    def _check_remove(self, item: str) -> None: ...

    @approve.handler
    def on_approve(self, approval: Approval) -> None: ...

    async def run(self) -> int:
        assert_type(self.content(), list[str])
        assert_type(await self.remove("a"), int)
        self.add("a")
        self.add(5)  # type: ignore[arg-type]
        self.content(5)  # type: ignore[call-arg]
        return 1


def references_have_types_one_can_name() -> None:
    one: SignalDefinition[[Approval]] = approve
    two: QueryDefinition[[bool], list[str]] = status
    three: UpdateDefinition[[float], Coroutine[Any, Any, Approval]] = set_price
    four: UpdateDefinition[[float], str] = plain
    five: SignalDefinition[[str]] = Order.add
    six: QueryDefinition[[], list[str]] = Order.content
    seven: UpdateDefinition[[str], Coroutine[Any, Any, int]] = Order.remove
    eight: SignalDefinition[[]] = poke
    assert {one.name, two.name, three.name, four.name, five.name, six.name, seven.name, eight.name}


def references_go_where_callables_go() -> None:
    asked: Callable[[bool], list[str]] = status
    done: Callable[[float], Coroutine[Any, Any, Approval]] = set_price
    asked_in_class: Callable[[], list[str]] = Order.content
    told: Callable[[str], Any] = Order.add
    wrong: Callable[[str], list[str]] = status  # type: ignore[assignment]
    wrong_too: Callable[[int], Any] = Order.add  # type: ignore[assignment]
    assert [asked, done, asked_in_class, told, wrong, wrong_too]


def wrong_references_are_found() -> None:
    one: SignalDefinition[[int]] = approve  # type: ignore[assignment]
    two: QueryDefinition[[bool], int] = status  # type: ignore[assignment]
    three: SignalDefinition[[Order, str]] = Order.add  # type: ignore[assignment]
    assert [one, two, three]

    workflow.signal(nam="x")  # type: ignore[call-overload]


async def what_workflow_code_asks_for() -> None:
    @workflow.signal
    def closure(number: int) -> None: ...

    @workflow.update
    def update(number: int) -> str:
        return str(number)

    @update.validator
    def check(number: int) -> None: ...

    @status.handler
    def on_status(verbose: bool) -> list[str]:
        return []

    assert_type(on_status(True), list[str])
    told: SignalDefinition[[int]] = closure
    assert_type(update(5), str)
    assert_type(await set_price(5), Approval)
    assert_type(workflow.signal_channel(approve), ReceiveChannel[Approval])
    assert_type(workflow.signal_channel(Order.add), ReceiveChannel[str])
    assert_type(workflow.signal_channel(poke), ReceiveChannel[None])
    pairs = workflow.signal_channel(pair)
    assert_type(pairs, ReceiveChannel[tuple[str, int]])
    also_pairs = workflow.signal_channel(with_default)
    assert_type(also_pairs, ReceiveChannel[tuple[str, int]])
    assert_type(workflow.signal_channel(many), ReceiveChannel[tuple[Any, ...]])
    assert_type(workflow.signal_channel("x", type=Approval), ReceiveChannel[Approval])
    assert_type(await workflow.signal_channel(approve).receive(), Approval)
    assert_type(await workflow.wait_until(lambda: 5), int)
    assert_type(workflow.cancel_reason(), str | None)
    assert_type(workflow.last_result(Approval), Approval | None)
    assert_type(workflow.info().parent, ParentInfo | None)
    workflow.signal_channel(5)  # type: ignore[call-overload]
    assert [told, check]
