"""Calls that cannot be: refused in the client before anything is sent, or a clear failure of the run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from durablefuture_trio import ActivityError, ApplicationError, PayloadError, WorkflowFailedError
from durablefuture_trio.client import Client
from tests._support import acceptance_app as app
from tests._support.installation import Installation
from tests._support.nats_server import nats_server
from tests._support.raw import raw_broker

MIB = 1024 * 1024


class Opaque:
    """Nothing that could be written down."""


@asynccontextmanager
async def nothing_is_stored(shared: Installation) -> AsyncIterator[None]:
    """Nothing comes into any inbox or history meanwhile."""
    async with raw_broker(shared) as (broker, subjects):
        streams = [
            stream
            for shard in range(subjects.shards)
            for stream in (subjects.inbox_stream(shard), subjects.history_stream(shard))
        ]

        async def last_sequences() -> list[int]:
            states = [await broker.stream_state(stream) for stream in streams]
            return [state.last_seq for state in states if state is not None]

        before = await last_sequences()
        assert len(before) == len(streams)
        yield
        assert await last_sequences() == before


BAD_CALLS: dict[str, tuple[Callable[[Any], Awaitable[Any]], type[Exception], str]] = {
    "too few arguments": (lambda client: client.start(app.greeting), TypeError, "greeting is missing argument 'name'"),
    "too many arguments": (
        lambda client: client.start(app.greeting, "Bob", "Eve"),
        TypeError,
        r"greeting takes 1 arguments? \(name\), not 2",
    ),
    "an argument by name": (lambda client: client.start(app.greeting, name="Bob"), TypeError, "unknown option name"),
    "an argument of the wrong type": (lambda client: client.start(app.greeting, 7), PayloadError, "name"),
    "an argument that cannot be encoded": (lambda client: client.start("greeting", Opaque()), PayloadError, "Opaque"),
    "too large an argument": (
        lambda client: client.start(app.large_argument, "x" * (2 * MIB + 1)),
        PayloadError,
        "2097",
    ),
    "no workflow": (lambda client: client.start(len, [1]), TypeError, "workflow"),
    "an activity": (lambda client: client.start(app.greet, "Bob"), TypeError, "greet"),
    "an empty id": (lambda client: client.start(app.greeting, "Bob", id=""), ValueError, "id"),
    "too long an id": (lambda client: client.start(app.greeting, "Bob", id="x" * 1000), ValueError, "id"),
    "an unknown policy": (
        lambda client: client.start(app.greeting, "Bob", id_conflict_policy="maybe"),
        ValueError,
        "use_existing",
    ),
    "a time that has passed": (
        lambda client: client.start(app.greeting, "Bob", execution_timeout=-1),
        ValueError,
        "execution_timeout",
    ),
    "a memo that cannot be encoded": (
        lambda client: client.start(app.greeting, "Bob", memo=Opaque()),
        PayloadError,
        "Opaque",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
async def test_a_call_that_cannot_be_is_refused_before_anything_is_sent(
    shared: Installation, client: Client, case: str
) -> None:
    call, kind, words = BAD_CALLS[case]
    async with nothing_is_stored(shared):
        with pytest.raises(kind, match=words):
            await call(client)


async def test_a_decorated_workflow_that_is_called_directly_says_how_to_start_it() -> None:
    with pytest.raises(RuntimeError, match=r"client\.run\(greeting"):
        await app.greeting("Bob")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "greeting", "Bob", "--id", ""], 2, "id"),
        (["run", ""], 2, "name of the workflow is empty"),
        (["run", "greeting", "Bob", "--execution-timeout", "0"], 2, "above 0"),
        (["start"], 2, "WORKFLOW"),
        (["explode"], 2, "explode"),
        (["list", "--status", "sleepy"], 2, "sleepy"),
        (["--namespace", "a b", "list"], 78, "a b"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_a_wrong_command_line_ends_with_a_word_and_a_code(
    shared: Installation, arguments: list[str], code: int, words: str
) -> None:
    done = await shared.command(*arguments)
    assert done.code == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# --- too large --------------------------------------------------------------------------------------------------------


def size_of_activity_argument(size: int) -> tuple[Any, int]:
    return app.large_argument_of_activity, size


TOO_LARGE = {
    "activity result": app.large_result_of_activity,
    "activity argument": app.large_argument_of_activity,
    "workflow result": app.large_result,
}


@pytest.mark.parametrize("case", TOO_LARGE)
async def test_a_value_over_the_limit_fails_the_run_with_size_and_limit(client: Client, case: str) -> None:
    await assert_too_large(client, case, 3 * MIB)


async def assert_too_large(client: Client, case: str, size: int) -> None:
    with pytest.raises(WorkflowFailedError) as caught:
        await client.run(TOO_LARGE[case], size)
    error = caught.value.cause
    if isinstance(error, ActivityError):
        error = error.cause
    assert isinstance(error, ApplicationError | PayloadError)
    assert getattr(error, "type", "PayloadError") == "PayloadError"
    # The size in bytes, with quotes and brackets around the text.
    assert str(size)[:5] in str(error).replace(",", "") or "MiB" in str(error), str(error)


@pytest.mark.parametrize("case", TOO_LARGE)
async def test_a_value_just_below_the_limit_passes(client: Client, case: str) -> None:
    size = 2 * MIB - 100
    result = await client.run(TOO_LARGE[case], size)
    assert (len(result) if isinstance(result, str) else result) == size


async def test_a_server_that_takes_less_than_the_limit_fails_the_run_and_keeps_the_link(
    installation: Installation,
) -> None:
    async with nats_server(max_payload=MIB) as server:
        installation.configure(
            f"""
            [supervisor]
            modules = ["tests._support.acceptance_app"]
            state_dir = "state"
            [nats]
            url = "{server.url}"
            [[activity_pool]]
            processes = 1
            """
        )
        process = await installation.start()
        async with installation.client() as client:
            for case in TOO_LARGE:
                await assert_too_large(client, case, MIB + MIB // 2)
            with pytest.raises(PayloadError, match="too large"):
                await client.start(app.large_argument, "x" * (MIB + MIB // 2))
            assert await client.run(app.large_argument, "x" * (MIB // 2)) == MIB // 2
            assert await client.run(app.greeting, "Bob") == "hello Bob"
        assert "connection to NATS" not in process.log, process.log
        assert await process.stop() == 0
