"""Queries: asked over core NATS until somebody answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio

from durablefuture_trio.authoring import workflow
from durablefuture_trio.codec import decode_arguments, encode_arguments, encode_value, failure_of
from durablefuture_trio.engine.requests import StartRequest
from durablefuture_trio.errors import PayloadError, QueryFailedError, RequestFailedError, WorkflowNotFoundError
from durablefuture_trio.history.events import ContinuedAsNew
from tests._support.scripted_owner import started
from tests.client.conftest import World

REQUEST = StartRequest(workflow_id="order-1", workflow="order", arguments=encode_arguments(("Bob",)))


@workflow.query
def item(number: int) -> tuple[str, int]:
    return "", number


async def in_background(nursery: trio.Nursery, call: Callable[[], Awaitable[Any]]) -> list[Any]:
    outcomes: list[Any] = []

    async def run() -> None:
        try:
            outcomes.append(await call())
        except (QueryFailedError, RequestFailedError, WorkflowNotFoundError) as error:
            outcomes.append(error)

    nursery.start_soon(run)
    return outcomes


async def test_an_answer_is_rebuilt_as_the_query_declares_it_and_nothing_is_stored(world: World) -> None:
    async with world.owner.listening() as questions, trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: world.client.handle("order-1").query(item, 3))
        question = await questions.next()
        assert (question.workflow_id, question.run_id, question.name) == ("order-1", "", "item")
        assert decode_arguments(question.arguments, (int,)) == (3,)
        world.owner.answer(question, "answered", "run-1", result=encode_value(("tea", 3)))
    assert outcomes == [("tea", 3)]
    assert world.published() == []


async def test_a_query_by_name_gives_plain_values_or_the_type_asked_for(world: World) -> None:
    handle = world.client.handle("order-1", run_id="run-1")
    async with world.owner.listening() as questions:
        for options, answer in (({}, ["tea", 3]), ({"result_type": tuple[str, int]}, ("tea", 3))):
            async with trio.open_nursery() as nursery:
                outcomes = await in_background(nursery, partial(handle.query, "item", 3, **options))
                question = await questions.next()
                assert question.run_id == "run-1"
                world.owner.answer(question, "answered", "run-1", result=encode_value(("tea", 3)))
            assert outcomes == [answer]


async def test_a_query_is_asked_again_every_second_until_somebody_answers(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "durablefuture_trio.client"):
        async with trio.open_nursery() as nursery:
            outcomes = await in_background(nursery, lambda: world.client.handle("order-1").query("state"))
            await trio.sleep(10)
            assert "nobody answers the query 'state' of workflow 'order-1' yet" in caplog.text
            async with world.owner.listening() as questions:
                with trio.fail_after(2.5):
                    await questions.next()
                    question = await questions.next()
                world.owner.answer(question, "answered", "run-1", result=encode_value("open"))
    assert outcomes == ["open"]


async def test_a_query_goes_out_when_the_link_is_back(world: World) -> None:
    world.broker.link.drop()
    async with world.owner.listening() as questions, trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: world.client.handle("order-1").query("state"))
        await trio.sleep(10)
        world.broker.link.restore()
        with trio.fail_after(5):
            question = await questions.next()
        world.owner.answer(question, "answered", "run-1", result=encode_value("open"))
    assert outcomes == ["open"]


async def test_a_scope_bounds_the_wait(world: World) -> None:
    with trio.move_on_after(5) as scope:
        await world.client.handle("order-1").query("state")
    assert scope.cancelled_caught


async def test_what_the_handler_raised_is_the_cause(world: World) -> None:
    async with world.owner.listening() as questions, trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: world.client.handle("order-1").query("state"))
        question = await questions.next()
        world.owner.answer(
            question, "failed", "run-1", failure=failure_of(LookupError("no query 'state'; known: item"))
        )
    (error,) = outcomes
    assert isinstance(error, QueryFailedError)
    assert str(error) == "query 'state' of workflow 'order-1' failed: LookupError: no query 'state'; known: item"
    assert (error.query, error.workflow_id, error.run_id) == ("state", "order-1", "run-1")
    assert error.cause is error.__cause__
    assert error.cause is not None


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ("not_found", WorkflowNotFoundError, "not delivered to workflow 'order-1': there is no such run"),
        ("blocked", RequestFailedError, "the run is blocked (there is no such run)"),
        ("undecodable", RequestFailedError, "there is no such run"),
    ],
)
async def test_a_refused_query_is_an_error_in_the_owners_words(
    world: World, answer: str, error: type[Exception], words: str
) -> None:
    async with world.owner.listening() as questions, trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: world.client.handle("order-1").query("state"))
        world.owner.answer(await questions.next(), answer, words="there is no such run")
    assert type(outcomes[0]) is error
    assert words in str(outcomes[0])


async def test_a_query_to_a_run_that_has_continued_as_new_asks_the_run_that_continues_it(world: World) -> None:
    await world.owner.commit("order-1", "run-1", started(REQUEST, "run-1", "first"))
    end = ContinuedAsNew(id=2, at=101.0, next_run_id="run-2", workflow="order", arguments=REQUEST.arguments)
    await world.owner.commit("order-1", "run-2", end, started(REQUEST, "run-2", ""))
    async with world.owner.listening() as questions, trio.open_nursery() as nursery:
        outcomes = await in_background(nursery, lambda: world.client.handle("order-1", run_id="run-1").query("state"))
        world.owner.answer(await questions.next(), "not_found")
        question = await questions.next()
        assert question.run_id == "run-2"
        world.owner.answer(question, "answered", "run-2", result=encode_value("open"))
    assert outcomes == ["open"]


async def test_a_query_larger_than_the_server_takes_is_refused(world: World) -> None:
    world.server.limits = type(world.server.limits)(max_payload_bytes=8192, server_version="2.15.1")
    with pytest.raises(PayloadError, match=r"query 'state' of workflow 'order-1' takes 5\d\d\d bytes; .* takes 4096"):
        await world.client.handle("order-1").query("state", "x" * 5000)
