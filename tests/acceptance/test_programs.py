"""The whole system inside a program, and programs that only connect."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
import trio

from durablefuture_trio import BrokerUnavailableError, ConfigError, activity, connect, open_supervisor, workflow
from tests._support import acceptance_app as app
from tests._support.installation import clean_environment, descendants, is_alive, until


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("DURABLEFUTURE_"):
            monkeypatch.delenv(name)


async def test_definitions_made_inside_a_function_run_in_real_processes() -> None:
    surcharge = 2.5

    @dataclass
    class Bill:
        customer: str
        amount: float
        pid: int

    @activity
    async def bill(customer: str, amount: float) -> Bill:
        return Bill(customer, amount + surcharge, os.getpid())

    @workflow
    async def order(customer: str, amount: float) -> Bill:
        return await bill(customer, amount)

    async with open_supervisor(workflows=[order], activities=[bill]) as supervisor:
        result = await supervisor.client.run(order, "Bob", 10.0)
        assert (result.customer, result.amount) == ("Bob", 12.5)
        assert result.pid != os.getpid()
        assert result.pid in descendants(os.getpid())


async def test_nothing_is_left_when_the_block_ends_and_what_it_raises_leaves_as_it_is() -> None:
    before = set(descendants(os.getpid()))
    started: set[int] = set()

    async def program() -> None:
        async with open_supervisor(modules=["tests._support.acceptance_app"]) as supervisor:
            assert await supervisor.client.run(app.greeting, "Bob") == "hello Bob"
            started.update(set(descendants(os.getpid())) - before)
            assert len(started) >= 3
            raise LookupError("of the body")

    with pytest.raises(LookupError, match="of the body"):
        await program()
    await until(lambda: not any(is_alive(pid) for pid in started), "the end of every child")


async def test_a_program_that_is_cancelled_leaves_nothing_either() -> None:
    before = set(descendants(os.getpid()))
    with trio.CancelScope() as scope:
        async with open_supervisor(modules=["tests._support.acceptance_app"]) as supervisor:
            await supervisor.client.start(app.working_for_ever, "/dev/null")
            started = set(descendants(os.getpid())) - before
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    await until(lambda: not any(is_alive(pid) for pid in started), "the end of every child")


async def test_what_is_no_definition_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither a @workflow nor an @activity"):
        async with open_supervisor(workflows=[len]):
            raise AssertionError("this must not be reached")


async def test_a_missing_module_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no_such_module_anywhere"):
        async with open_supervisor(modules=["no_such_module_anywhere"]):
            raise AssertionError("this must not be reached")


async def test_a_server_that_is_down_is_refused_with_its_address(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[nats]\nurl = "nats://127.0.0.1:1"\nconnect_timeout = 0.5\n')
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1"):
        async with open_supervisor("x.toml", workflows=[app.greeting], activities=[app.greet]):
            raise AssertionError("this must not be reached")


async def test_another_program_in_the_directory_finds_the_server_by_itself() -> None:
    async with open_supervisor(modules=["tests._support.acceptance_app"]), connect() as client:
        assert await client.run(app.greeting, "Bob") == "hello Bob"


async def test_without_a_server_connect_lists_where_it_looked() -> None:
    with pytest.raises(ConfigError, match=r"connect\(url\).*DURABLEFUTURE_NATS_URL.*supervisor\.toml.*server\.json"):
        async with connect():
            raise AssertionError("this must not be reached")


PROGRAM = dedent(
    """
    import sys
    import trio
    from durablefuture_trio import activity, open_supervisor, workflow

    @activity
    async def add(left: int, right: int) -> int:
        print("adding", file=sys.stderr)
        return left + right

    @workflow
    async def total(numbers: list[int]) -> int:
        result = 0
        for number in numbers:
            result = await add(result, number)
        return result

    async def main() -> None:
        async with open_supervisor(workflows=[total], activities=[add]) as supervisor:
            print(await supervisor.client.run(total, [1, 2, 3], id="sum", request_id="the only one"))

    if __name__ == "__main__":
        trio.run(main)
    """
)


async def test_a_script_runs_its_own_functions_and_run_again_finds_what_it_did(tmp_path: Path) -> None:
    script = tmp_path / "total.py"
    script.write_text(PROGRAM)
    errors = []
    for _ in range(2):
        with trio.fail_after(40):
            done = await trio.run_process(
                [sys.executable, str(script)],
                cwd=tmp_path,
                env=clean_environment(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout == b"6\n"
        errors.append(done.stderr.decode())
    assert errors[0].count("adding") == 3
    assert errors[1].count("adding") == 0, "the second start under the same request id is the first run"
