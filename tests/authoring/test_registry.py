from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any
from uuid import uuid4

import pytest
import trio

from durablefuture_trio import ConfigError, activity, workflow
from durablefuture_trio.authoring import definition_of
from durablefuture_trio.authoring.registry import Registry, pickle_definitions
from durablefuture_trio.codec import decode_value, encode_value

HEADER = """
from __future__ import annotations
from dataclasses import dataclass
from durablefuture_trio import activity, workflow
"""

MakeModule = Callable[[str], str]


@pytest.fixture
def make_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeModule]:
    """Writes modules under names no other test uses."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def make(source: str) -> str:
        name = f"registry_case_{uuid4().hex}"
        (tmp_path / f"{name}.py").write_text(HEADER + dedent(source))
        made.append(name)
        return name

    yield make
    for name in made:
        sys.modules.pop(name, None)


ORDER = """
@activity
async def charge(amount: float) -> str: ...

fast_charge = charge.with_options(task_queue="fast")

@activity(name="ship-it")
def ship(what: str) -> None: ...

@workflow
async def order(amount: float) -> str:
    return await charge(amount)

@workflow
class Subscription:
    async def run(self, customer: str) -> None: ...

def helper() -> None: ...
"""


def test_definitions_are_found_among_the_attributes_of_modules(make_module: MakeModule) -> None:
    registry = Registry.load([make_module(ORDER)])
    assert list(registry.workflows) == ["Subscription", "order"]
    assert list(registry.activities) == ["charge", "ship-it"]
    assert registry.activities["charge"].options == {}


def test_a_definition_that_several_modules_import_counts_once(make_module: MakeModule) -> None:
    home = make_module(ORDER)
    user = make_module(f"from {home} import charge, order, Subscription")
    assert list(Registry.load([user, home, user]).activities) == ["charge", "ship-it"]
    assert list(Registry.load([user]).activities) == ["charge"]


def test_two_definitions_of_a_name_are_a_problem_that_names_both(make_module: MakeModule) -> None:
    first, second = make_module(ORDER), make_module(ORDER)
    with pytest.raises(ConfigError) as caught:
        Registry.load([first, second])
    assert len(caught.value.problems) == 4
    [charge] = [problem for problem in caught.value.problems if "name charge" in problem]
    assert "two activities have the name charge" in charge
    assert f"{first}.charge:" in charge
    assert f"{second}.charge:" in charge


def test_an_activity_and_a_workflow_may_share_a_name(make_module: MakeModule) -> None:
    registry = Registry.load(
        [
            make_module(
                """
                @activity(name="same")
                async def one() -> None: ...
                @workflow(name="same")
                async def other() -> None: ...
                """
            )
        ]
    )
    assert list(registry.workflows) == list(registry.activities) == ["same"]


def test_all_problems_are_reported_at_once(make_module: MakeModule) -> None:
    modules = [
        "no_such_module_anywhere",
        make_module("import no_such_library_anywhere"),
        make_module("def broken(:"),
        make_module("raise RuntimeError('no database')"),
        make_module("raise SystemExit(3)"),
        make_module("@activity\nasync def act(value: Missing) -> None: ..."),
        make_module("@activity\nasync def act2(value: complex) -> None: ..."),
        make_module("@workflow\ndef flow() -> None: ..."),
    ]
    with pytest.raises(ConfigError) as caught:
        Registry.load(modules)
    problems = caught.value.problems
    expected = [
        "no_such_module_anywhere is not found: check its name in `modules`",
        f"module {modules[1]} cannot be imported: ModuleNotFoundError: No module named 'no_such_library_anywhere'",
        f"module {modules[2]} cannot be imported: SyntaxError",
        f"module {modules[3]} cannot be imported: RuntimeError: no database",
        f"module {modules[4]} cannot be imported: SystemExit: 3",
        f"module {modules[7]} cannot be imported: TypeError: @workflow flow is a plain def",
        f"{modules[5]}.act:",
        f"{modules[6]}.act2:",
    ]
    assert len(problems) == len(expected)
    for text in expected:
        assert any(text in problem for problem in problems), (text, problems)
    assert any(f"{modules[3]}.py:5)" in problem for problem in problems)


def test_a_package_part_that_is_missing_is_a_module_not_found() -> None:
    with pytest.raises(ConfigError, match=r"module durablefuture_trio\.no_such\.thing is not found"):
        Registry.load(["durablefuture_trio.no_such.thing"])


def test_the_code_hash_changes_with_the_source_and_only_then(make_module: MakeModule, tmp_path: Path) -> None:
    name = make_module(ORDER)
    first = Registry.load([name]).code_hash
    assert Registry.load([name]).code_hash == first
    file = tmp_path / f"{name}.py"
    file.write_text(file.read_text() + "\n# another line\n")
    assert Registry.load([name]).code_hash != first


def test_what_is_neither_activity_nor_workflow_is_a_problem() -> None:
    with pytest.raises(ConfigError, match="is neither an @activity nor a @workflow"):
        Registry.of([len])


SCRIPT = """
from __future__ import annotations
import sys
from dataclasses import dataclass
from durablefuture_trio import activity, workflow
from durablefuture_trio.authoring.registry import Registry, pickle_definitions

@dataclass
class Charge:
    id: str
    items: Items

Items = dict[str, "Item"]

@dataclass
class Item:
    price: float
    parts: list[Item]

@activity(start_to_close_timeout=5)
async def charge(customer: str) -> Charge:
    return Charge(customer, {"a": Item(1.5, [Item(1.0, [])])})

@workflow
async def order(customer: str) -> Charge:
    workflow.logger.info("charging")
    return await charge.with_options(priority=1)(customer)

@workflow
class Counter:
    async def run(self, number: int) -> int:
        return number + 1

def make(offset: int):
    @workflow
    async def local(number: int) -> int:
        return number + offset
    return local

wanted = [order, Counter, make(5), charge]
sys.stdout.write(Registry.of(wanted).code_hash + "\\n")
sys.stdout.flush()
sys.stdout.buffer.write(pickle_definitions(wanted))
"""


async def test_definitions_of_a_script_and_of_functions_travel_by_value(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = await trio.run_process([sys.executable, str(script)], capture_stdout=True)
    code_hash, _, pickled = done.stdout.partition(b"\n")
    registry = Registry.load([], pickled)
    assert list(registry.workflows) == ["Counter", "local", "order"]
    charge = registry.activities["charge"]
    charge_class = charge.result_hint
    assert registry.workflows["order"].result_hint is charge_class
    result = await registry.workflows["order"].fn("Bob")
    assert type(result) is charge_class
    assert decode_value(encode_value(result), charge_class) == result
    assert await registry.workflows["local"].fn(1) == 6
    assert await registry.workflows["Counter"].fn(1) == 2
    assert charge.options == {"start_to_close_timeout": 5.0}
    assert registry.workflows["order"].fn.__globals__["charge"] is charge  # type: ignore[attr-defined]
    assert registry.code_hash == code_hash.decode()


def test_definitions_that_can_be_imported_travel_by_name(make_module: MakeModule) -> None:
    registry = Registry.load([make_module(ORDER)])
    charge = registry.activities["charge"]
    assert charge.is_importable()
    assert pickle.loads(pickle.dumps(charge)) is charge
    fast = charge.with_options(priority=3)
    again = pickle.loads(pickle.dumps(fast))
    assert again.fn is charge.fn
    assert again.options == {"priority": 3}


def test_a_function_in_a_function_is_not_importable() -> None:
    @activity
    async def local() -> None: ...

    @workflow
    class Local:
        async def run(self) -> None: ...

    assert not local.is_importable()
    assert not definition_of(Local).is_importable()  # type: ignore[union-attr]


def test_two_workflows_that_refer_to_each_other_travel_together() -> None:
    registry = Registry.load([], pickle_definitions([_mutual()]))
    assert list(registry.workflows) == ["first"]


def _mutual() -> Any:
    cell: dict[str, Any] = {}

    @workflow
    async def first() -> str:
        return str(cell["second"].name)

    @workflow
    async def second() -> str:
        return str(cell["first"].name)

    cell.update(first=first, second=second)
    return first


def test_what_cannot_be_pickled_is_told_with_what_to_do() -> None:
    lock = threading.Lock()

    @activity
    async def locked() -> None:
        lock.acquire()

    with pytest.raises(TypeError, match=r"locked cannot be sent to another process.*define them in a module"):
        pickle_definitions([locked])


def test_bytes_that_are_no_definitions_are_a_problem() -> None:
    with pytest.raises(ConfigError, match="definitions sent along cannot be read"):
        Registry.load([], b"nonsense")
