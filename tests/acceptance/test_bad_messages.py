"""What should not be in the streams: put there by hand, told clearly, and never in the way of other runs."""

from __future__ import annotations

import msgspec
import pytest
import trio

from durablefuture_trio import HistoryError
from durablefuture_trio._ids import shard_of
from durablefuture_trio.client import Client
from durablefuture_trio.codec import encode_arguments
from durablefuture_trio.ports.broker import Append
from durablefuture_trio.protocol.envelope import StartRequest, decode_answer, encode_envelope, request_headers
from durablefuture_trio.protocol.subjects import Subjects
from tests._support import acceptance_app as app
from tests._support.installation import Installation, listed
from tests._support.raw import raw_broker


def same_shard(workflow_id: str, subjects: Subjects) -> str:
    """Another id of the same shard."""
    wanted = subjects.shard_of(workflow_id)
    return next(
        name for n in range(1000) if shard_of(name := f"neighbour-{workflow_id}-{n}", subjects.shards) == wanted
    )


NEWER_START = msgspec.msgpack.encode({"type": "TeleportRequest", "workflow_id": "poison"})
BROKEN_START = encode_envelope(
    StartRequest(workflow_id="poison", workflow="greeting", arguments=encode_arguments(("Bob",)))
)[:-3]


BODIES = {"empty": b"", "junk": b"\xff\xfe junk", "of a newer kind": NEWER_START, "cut off": BROKEN_START}


@pytest.mark.parametrize("kind", BODIES)
async def test_an_inbox_message_that_nobody_can_read_becomes_a_dead_letter_with_the_reason(
    shared: Installation, client: Client, kind: str
) -> None:
    body = BODIES[kind]
    async with raw_broker(shared) as (broker, subjects), broker.listen(subjects.answers("tester")) as answers:
        stream = subjects.inbox_stream(subjects.shard_of("poison"))
        subject = subjects.inbox("poison", "start")
        headers = request_headers("request-of-poison", subjects.answer("tester", "1"))
        seq = await broker.append(Append(subject=subject, body=body, headers=headers))

        with trio.fail_after(20):
            # Whoever asked is told, rather than left waiting.
            answer = decode_answer((await answers.receive()).body)
            assert (answer.request_id, answer.answer) == ("request-of-poison", "undecodable")
            letter = await broker.last(subjects.dead_stream, subjects.dead_letter(subjects.shard_of("poison")))
            assert letter is not None
            assert letter.body == body
            assert letter.headers["Df-Subject"] == subject
            assert letter.headers["Df-Sequence"] == str(seq)
            assert letter.headers["Df-Reason"] in answer.message
            assert letter.headers["Df-Request"] == "request-of-poison"
            # Acknowledged: a work queue forgets what is acknowledged.
            while await broker.last(stream, subject) is not None:  # noqa: ASYNC110 - the server tells nobody
                await trio.sleep(0.01)
            assert await client.run(app.greeting, "Bob", id=same_shard("poison", subjects)) == "hello Bob"
    assert f"inbox message {subject} (sequence {seq}) cannot be read" in shared.running.log
    status = await shared.command("status")
    assert "dead letters: 0" not in status.stdout


DAMAGES = {
    "junk": (b"\xff junk", "cannot be read"),
    "a newer schema": (
        msgspec.msgpack.encode({"schema": 99, "run_id": "r", "commit_id": "c", "events": [{"type": "Teleported"}]}),
        "has schema 99, this program knows up to 1: run a newer durablefuture-trio",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_history_that_cannot_be_read_blocks_its_run_by_subject_and_number_and_no_other(
    shared: Installation, client: Client, damage: str
) -> None:
    body, words = DAMAGES[damage]
    workflow_id = f"damaged by {damage}"
    handle = await client.start(app.sleeping, 1.6, id=workflow_id)
    async with raw_broker(shared) as (broker, subjects):
        # Parked: nothing of it is in memory, and its timer will find the damage.
        await listed(client, workflow_id, lambda entry: entry.status == "running")
        subject = subjects.history(workflow_id, 2)
        seq = await broker.append(Append(subject=subject, body=body, expect_last=0))

        entry = await listed(client, workflow_id, lambda entry: entry.status == "blocked")
        assert f"history message {subject} (sequence {seq})" in entry.blocked
        assert words in entry.blocked
        assert await client.run(app.greeting, "Bob", id=same_shard(workflow_id, subjects)) == "hello Bob"
        with pytest.raises(HistoryError, match=f"sequence {seq}"):
            await handle.history()
        for command in ("history", "show", "result"):
            done = await shared.command(command, workflow_id)
            assert done.code == 1
            assert subject in done.stderr
            assert "Traceback" not in done.stderr
        table = await shared.command("list", "--status", "blocked", "--limit", "0")
        assert workflow_id in table.stdout

        # The remedy that the message names: with the bad message gone, the run goes on from where it was.
        assert await broker.delete(subjects.history_stream(subjects.shard_of(workflow_id)), seq)
        with trio.fail_after(30):
            assert await handle.result() >= 1.6
        await listed(client, workflow_id, lambda entry: entry.status == "completed")


async def test_a_run_at_work_whose_next_number_is_taken_by_junk_is_blocked_and_no_other(
    shared: Installation, client: Client
) -> None:
    handle = await client.start(app.sleeping, 0.8, id="overtaken")
    async with raw_broker(shared) as (broker, subjects):
        subject = subjects.history("overtaken", 2)
        seq = await broker.append(Append(subject=subject, body=b"\xff junk", expect_last=0))
        entry = await listed(client, "overtaken", lambda entry: entry.status == "blocked")
        assert f"history message {subject} (sequence {seq})" in entry.blocked
        assert await client.run(app.greeting, "Bob", id=same_shard("overtaken", subjects)) == "hello Bob"
        assert await broker.delete(subjects.history_stream(subjects.shard_of("overtaken")), seq)
        with trio.fail_after(30):
            assert await handle.result() >= 0.8


async def test_a_history_with_a_hole_is_told_to_have_one(shared: Installation, client: Client) -> None:
    handle = await client.start(app.giving_up, 1.0, "/dev/null", id="with a hole")
    assert await handle.result() == "hello again"
    async with raw_broker(shared) as (broker, subjects):
        stream = subjects.history_stream(subjects.shard_of("with a hole"))
        missing = subjects.history("with a hole", 2)
        stored = await broker.last(stream, missing)
        assert stored is not None
        assert await broker.delete(stream, stored.seq)
        done = await shared.command("history", "with a hole")
        assert done.code == 1
        assert missing in done.stderr
        assert "messages were removed" in done.stderr
