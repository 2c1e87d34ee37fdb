from __future__ import annotations

import subprocess
import sys

import pytest

import durablefuture_trio


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_loads_nothing_else() -> None:
    loaded = run_python(
        "import sys; before = set(sys.modules); import durablefuture_trio; print(*sorted(set(sys.modules) - before))"
    )
    assert set(loaded.split()) <= {"durablefuture_trio", "durablefuture_trio._version", "__future__"}


def test_writing_activities_and_workflows_loads_neither_trio_nor_nats_nor_asyncio() -> None:
    loaded = run_python(
        "import sys; from durablefuture_trio import RetryPolicy, activity, activity_options, workflow; "
        "print(*sys.modules)"
    ).split()
    assert "durablefuture_trio.authoring" in loaded
    assert {"trio", "nats", "asyncio", "trio_asyncio", "orjson"}.isdisjoint(loaded)


@pytest.mark.parametrize("name", durablefuture_trio.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(durablefuture_trio, name) is not None
    assert name in dir(durablefuture_trio)


def test_the_decorators_are_not_hidden_by_modules_of_their_names() -> None:
    for name in ("activity", "workflow"):
        with pytest.raises(ModuleNotFoundError):
            __import__(f"durablefuture_trio.{name}")
    assert callable(durablefuture_trio.activity)
    assert callable(durablefuture_trio.workflow)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        durablefuture_trio.nonsense  # noqa: B018
