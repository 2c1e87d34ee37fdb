"""Signals, queries and updates as definitions: what clients see of them, and what is refused where it is written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any
from uuid import uuid4

import cloudpickle  # type: ignore[import-untyped]
import pytest

from durablefuture_trio import ConfigError, QueryDefinition, SignalDefinition, UpdateDefinition, workflow
from durablefuture_trio.authoring import definition_of
from durablefuture_trio.authoring.registry import Registry, pickle_definitions
from durablefuture_trio.codec import encode_arguments


@dataclass
class Approval:
    by: str
    level: int = 1


@workflow.signal
def approve(approval: Approval, note: str = "") -> None:
    """Say yes."""


@workflow.query(name="how-far")
def progress(verbose: bool = False) -> list[str]:
    raise NotImplementedError


@workflow.update
async def set_price(price: float) -> Approval:
    return Approval(f"{price}")


@set_price.validator
def _check_price(price: float) -> None:
    if price < 0:
        raise ValueError(price)


@workflow
class Order:
    def __init__(self) -> None:
        self.items: list[Any] = []

    @workflow.signal
    def add(self, item: Approval) -> None:
        self.items.append(item)

    @workflow.query
    def content(self) -> list[Approval]:
        return self.items

    @workflow.update(name="remove-one")
    async def remove(self, index: int, times: int = 1) -> str:
        return f"{index}{times}"

    @remove.validator
    def _check_remove(self, index: int, times: int) -> None:
        if index >= len(self.items):
            raise IndexError(index)

    @set_price.handler
    async def on_price(self, price: Any) -> Approval:
        return Approval(f"{price}")

    async def run(self) -> int:
        return len(self.items)


def test_a_declaration_is_a_reference_with_name_parameters_and_result() -> None:
    assert isinstance(approve, SignalDefinition)
    assert (approve.kind, approve.name, approve.__doc__) == ("signal", "approve", "Say yes.")
    assert approve.signature.names == ("approval", "note")
    assert approve.parameter_hints == (Approval, str)
    assert approve.bind_arguments((Approval("Ann"),)) == (Approval("Ann"), "")
    assert isinstance(progress, QueryDefinition)
    assert (progress.kind, progress.name, progress.result_hint) == ("query", "how-far", list[str])
    assert isinstance(set_price, UpdateDefinition)
    assert (set_price.kind, set_price.result_hint) == ("update", Approval)
    assert repr(approve) == f"<signal approve ({__name__}.approve)>"


def test_arguments_are_decoded_by_the_hints_with_defaults() -> None:
    assert approve.decode(encode_arguments(({"by": "Ann"},))) == (Approval("Ann"), "")
    with pytest.raises(TypeError, match="signal approve is missing argument 'approval'"):
        approve.decode(encode_arguments(()))


def test_a_method_is_a_reference_of_its_class_and_a_method_of_its_object() -> None:
    assert isinstance(Order.add, SignalDefinition)
    assert Order.add.signature.names == ("item",)
    assert Order.add.parameter_hints == (Approval,)
    assert (Order.remove.name, Order.remove.result_hint) == ("remove-one", str)
    assert Order.remove.bind_arguments((5,)) == (5, 1)
    order = Order()
    order.add(Approval("Ann"))
    assert order.content() == [Approval("Ann")]


async def test_methods_closures_and_functions_can_be_called_in_unit_tests() -> None:
    assert await Order().remove(1, times=2) == "12"
    assert await Order().on_price(5) == Approval("5")
    assert await set_price(1.5) == Approval("1.5")

    @workflow
    async def main() -> str:
        word = ""

        @workflow.signal
        def say(text: str) -> None:
            nonlocal word
            word = text

        @approve.handler
        def on_approve(approval: Approval, note: str) -> None: ...

        say("hello")
        on_approve(Approval("Ann"), "")
        return word

    assert await main.fn() == "hello"


def test_a_subclass_has_the_handlers_of_its_base_unless_it_writes_others() -> None:
    @workflow(name="special-order")
    class Special(Order):
        @workflow.signal(name="add")
        def add(self, item: Any) -> None:
            self.items.append("special")

        def content(self) -> list[Any]:  # type: ignore[override]
            return []

    from durablefuture_trio.authoring._messages import messages_of

    found = messages_of(Special)
    assert list(found) == ["add", "remove", "on_price"]
    assert found["add"] is not messages_of(Order)["add"]
    assert found["remove"] is Order.remove


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_cannot_be_a_message_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"query .*asked is an `async def`, but it only looks"):

        @workflow.query
        async def asked() -> int:
            return 1

    with pytest.raises(TypeError, match=r"signal told: \*words cannot be recorded"):

        @workflow.signal
        def told(*words: str) -> None: ...

    with pytest.raises(TypeError, match="parameter 'how' is keyword-only"):

        @workflow.update
        def done(*, how: str) -> None: ...

    with pytest.raises(TypeError, match="is a generator"):

        @workflow.signal
        def many() -> Iterator[int]:
            yield 1

    with pytest.raises(TypeError, match="does not go onto a lambda"):
        workflow.signal(lambda: None)
    with pytest.raises(TypeError, match="goes onto a function"):
        workflow.query(5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="name must be a non-empty string"):
        workflow.update(name="")
    with pytest.raises(TypeError, match="takes either the function or options"):
        workflow.signal(lambda: None, name="x")  # type: ignore[call-overload]

    with pytest.raises(TypeError, match=r"does not go onto a staticmethod: give .*told a self instead"):

        class Wrong:
            @workflow.signal
            @staticmethod
            def told() -> None: ...


def test_handlers_and_validators_have_to_take_what_is_sent() -> None:
    with pytest.raises(TypeError, match="must take what the signal carries: approval, note"):

        @approve.handler
        def too_few(approval: Approval) -> None: ...

    with pytest.raises(TypeError, match="must take what the update carries: price"):

        @set_price.validator
        def too_many(price: float, more: int) -> None: ...

    with pytest.raises(TypeError, match=r"the validator .* is an `async def`"):

        @set_price.validator
        async def asking(price: float) -> None: ...

    with pytest.raises(TypeError, match=r"query .*asking_too is an `async def`"):

        @progress.handler
        async def asking_too(verbose: bool) -> list[str]:
            return []


def test_two_handlers_of_one_name_in_a_class_are_refused() -> None:
    with pytest.raises(TypeError, match=r"has two handlers of signal add: add and also_add"):

        @workflow
        class Twice:
            @workflow.signal
            def add(self) -> None: ...

            @workflow.signal(name="add")
            def also_add(self) -> None: ...

            @workflow.update(name="add")
            def another_kind(self) -> None: ...

            async def run(self) -> None: ...


def test_helpers_outside_of_a_workflow_say_so() -> None:
    with pytest.raises(RuntimeError, match=r"workflow\.signal_channel\(\) works only"):
        workflow.signal_channel(approve)
    with pytest.raises(RuntimeError, match=r"workflow\.cancel_reason\(\) works only"):
        workflow.cancel_reason()
    with pytest.raises(RuntimeError, match=r"workflow\.last_result\(\) works only"):
        workflow.last_result()


async def test_wait_until_outside_of_a_workflow_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"workflow\.wait_until\(\) works only"):
        await workflow.wait_until(lambda: True)


# --- in modules and on the way to other processes ---------------------------------------------------------------------


def module_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> str:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"message_case_{uuid4().hex}"
    header = "from __future__ import annotations\nfrom durablefuture_trio import workflow\n"
    (tmp_path / f"{name}.py").write_text(header + dedent(source))
    return name


def test_references_in_modules_are_no_definitions_of_the_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = module_of(tmp_path, monkeypatch, "@workflow.signal\ndef cancel_it(why: str) -> None: ...\n")
    other = module_of(tmp_path, monkeypatch, "@workflow.signal\ndef cancel_it(other: int) -> None: ...\n")
    registry = Registry.load([one, other])
    assert (list(registry.workflows), list(registry.activities)) == ([], [])


def test_a_handler_at_module_level_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module_of(
        tmp_path,
        monkeypatch,
        """
        @workflow.signal
        def told(word: str) -> None: ...

        @told.handler
        def on_told(word: str) -> None: ...
        """,
    )
    with pytest.raises(ConfigError, match="each run has its own handler, and at module level there is no run"):
        Registry.load([name])


def test_hints_that_cannot_be_recorded_are_a_problem_of_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module_of(
        tmp_path,
        monkeypatch,
        """
        import threading

        @workflow.signal
        def told(lock: threading.Lock) -> None: ...

        @workflow
        class Order:
            @workflow.update
            def done(self, lock: threading.Thread) -> None: ...
            async def run(self) -> None: ...
        """,
    )
    with pytest.raises(ConfigError) as caught:
        Registry.load([name])
    assert any("signal told, parameter 'lock'" in problem for problem in caught.value.problems)
    assert any("update done, parameter 'lock'" in problem for problem in caught.value.problems)


def test_importable_references_travel_by_name() -> None:
    for reference in (approve, set_price, Order.add):
        assert cloudpickle.loads(cloudpickle.dumps(reference)) is reference


LOCAL = """
import sys
from dataclasses import dataclass
from durablefuture_trio import workflow
from durablefuture_trio.authoring.registry import pickle_definitions

@dataclass
class Item:
    name: str

@workflow.signal
def note(item: Item) -> None: ...

@workflow.update
def price(value: float) -> float:
    raise NotImplementedError

@price.validator
def _check(value: float) -> None:
    if value < 0:
        raise ValueError("negative")

@workflow
class Basket:
    def __init__(self) -> None:
        self.items: list[Item] = []

    @workflow.signal
    def add(self, item: Item) -> None:
        self.items.append(item)

    @workflow.update
    def rename(self, item: Item) -> str:
        return item.name

    @rename.validator
    def _check_rename(self, item: Item) -> None:
        if not item.name:
            raise ValueError("no name")

    @price.handler
    def on_price(self, value: float) -> float:
        return value * 2

    async def run(self) -> list[Item]:
        await workflow.wait_until(lambda: self.items)
        return self.items

@workflow
async def noted() -> str:
    async with workflow.signal_channel(note) as notes:
        return (await notes.receive()).name

sys.stdout.buffer.write(pickle_definitions([Basket, noted]))
"""

USE = """
import sys
from durablefuture_trio import codec
from durablefuture_trio.authoring.registry import Registry
from tests._support.conversation import Conversation, answers_in, result_of

registry = Registry.load([], sys.stdin.buffer.read())
assert list(registry.workflows) == ["Basket", "noted"], registry.workflows
basket = Conversation(registry.workflows["Basket"])
basket.start()
assert answers_in(basket.update("u-1", "rename", {"name": "x"})) == {"u-1": "x"}
assert answers_in(basket.update("u-2", "price", 2)) == {"u-2": 4.0}
for wrong in (("rename", {"name": ""}), ("price", -1)):
    try:
        basket.validate(*wrong)
    except Exception as error:
        assert error.type == "ValueError", error
    else:
        raise AssertionError(wrong)
assert result_of(basket.signal("add", {"name": "milk"})) == [{"name": "milk"}]
noted = Conversation(registry.workflows["noted"])
noted.start()
assert result_of(noted.signal("note", {"name": "n"})) == "n"
"""


def test_workflows_of_a_script_travel_with_their_messages(tmp_path: Path) -> None:
    """A class of ``__main__`` goes to the children by value, with its handlers and what they refer to."""
    script = tmp_path / "script.py"
    script.write_text(LOCAL)
    pickled = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, timeout=60).stdout
    done = subprocess.run(
        [sys.executable, "-c", USE],
        input=pickled,
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_the_code_of_handlers_counts_for_the_code_hash() -> None:
    def registry_with(answer: int) -> Registry:
        if answer == 1:

            @workflow(name="asked")
            class One:
                @workflow.query
                def ask(self) -> int:
                    return 1

                async def run(self) -> None: ...

            return Registry.of([One])

        @workflow(name="asked")
        class Two:
            @workflow.query
            def ask(self) -> int:
                return 2

            async def run(self) -> None: ...

        return Registry.of([Two])

    hashes = {registry_with(answer).code_hash for answer in (1, 2)}
    assert len(hashes) == 2
    assert definition_of(Order) is not None
    assert pickle_definitions([Order])
