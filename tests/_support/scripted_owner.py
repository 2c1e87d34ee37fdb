"""The owner's side of the protocol, played by a test: it takes requests, writes real commits and answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from durablefuture_trio._ids import new_id
from durablefuture_trio.codec import encode_value
from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine.requests import Answer, Envelope, StartRequest, TerminateRequest
from durablefuture_trio.history.commit import Commit, encode_commit
from durablefuture_trio.history.events import (
    TERMINAL_EVENTS,
    Event,
    RequestRecord,
    Terminal,
    WorkflowCompleted,
    WorkflowStarted,
)
from durablefuture_trio.ports.broker import Append, Broker, Message, Reader
from durablefuture_trio.protocol.envelope import (
    ClosedHint,
    Inbound,
    QueryRequest,
    decode_query,
    encode_answer,
    encode_hint,
    inbound,
)
from durablefuture_trio.protocol.projection import Projection, ProjectionRecord
from durablefuture_trio.protocol.subjects import Subjects

_PATIENCE_S = 600.0
"""Of virtual time: a request that does not come fails the test instead of letting time run on for ever."""

E = TypeVar("E", bound=Envelope)


class Questions:
    """The queries that arrive."""

    def __init__(self, messages: trio.MemoryReceiveChannel[Message]) -> None:
        self._messages = messages

    async def next(self) -> QueryRequest:
        with trio.fail_after(_PATIENCE_S):
            return decode_query((await self._messages.receive()).body)


class ScriptedOwner:
    """Owns the only shard of a namespace. Every step is a call of the test; nothing happens by itself."""

    def __init__(self, broker: Broker, subjects: Subjects, reader: Reader) -> None:
        self._broker = broker
        self._subjects = subjects
        self._reader = reader
        self._tips: dict[str, tuple[int, int, str]] = {}
        self._waiting: list[Inbound] = []

    async def request(self) -> Inbound:
        """The next inbox message, acknowledged."""
        with trio.fail_after(_PATIENCE_S):
            while not self._waiting:
                for delivery in await self._reader.receive():
                    self._reader.ack(delivery)
                    self._waiting.append(inbound(delivery))
        return self._waiting.pop(0)

    async def request_of(self, kind: type[E]) -> tuple[Inbound, E]:
        """The next inbox message, which has to be of this kind."""
        message = await self.request()
        assert isinstance(message.envelope, kind)
        return message, message.envelope

    async def start_request(self) -> tuple[Inbound, StartRequest]:
        return await self.request_of(StartRequest)

    async def terminate_request(self) -> tuple[Inbound, TerminateRequest]:
        return await self.request_of(TerminateRequest)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Questions]:
        """Be subscribed to the queries of the shard."""
        async with self._broker.listen(self._subjects.queries(0)) as messages:
            yield Questions(messages)

    def answer(
        self,
        message: Inbound | QueryRequest,
        answer: str,
        run_id: str = "",
        words: str = "",
        *,
        result: Payload | None = None,
        failure: Failure | None = None,
    ) -> None:
        """Tell the client what was decided."""
        decided = Answer(
            request_id=message.request_id,
            answer=answer,
            run_id=run_id,
            message=words,
            result=result,
            failure=failure,
        )
        self._broker.tell(message.reply, encode_answer(decided))

    async def commit(
        self,
        workflow_id: str,
        run_id: str,
        *events: Event,
        refused: tuple[RequestRecord, ...] = (),
    ) -> int:
        """Write the next commit of the id; returns its number."""
        n, first_n, current = self._tips.get(workflow_id, (0, 0, ""))
        n += 1
        if run_id != current:
            first_n = n
        self._tips[workflow_id] = (n, first_n, run_id)
        commit = Commit(
            run_id=run_id,
            commit_id=new_id(),
            first_n=first_n,
            finished=True,
            consumed=n,
            events=events,
            refused=refused,
        )
        subject = self._subjects.history(workflow_id, n)
        await self._broker.append(Append(subject=subject, body=encode_commit(commit), expect_last=0))
        return n

    def hint(self, workflow_id: str, run_id: str, event: Terminal | None, n: int = 0) -> None:
        """Tell that a run has closed."""
        body = encode_hint(ClosedHint(run_id=run_id, n=n, event=event))
        self._broker.tell(self._subjects.closed_hint(workflow_id), body)

    async def begin(self, message: Inbound, run_id: str, *, answer: bool = True) -> WorkflowStarted:
        """Start the run that a start asks for."""
        assert isinstance(message.envelope, StartRequest)
        event = started(message.envelope, run_id, message.request_id)
        await self.commit(event.workflow_id, run_id, event)
        if answer:
            self.answer(message, "applied", run_id)
        return event

    async def close(self, workflow_id: str, run_id: str, event: Terminal, *, hint: bool = True) -> None:
        """End a run."""
        assert isinstance(event, TERMINAL_EVENTS)
        n = await self.commit(workflow_id, run_id, event)
        if hint:
            self.hint(workflow_id, run_id, event, n)

    async def project(self, record: ProjectionRecord) -> None:
        """Write a listing record."""
        await Projection(self._broker, self._subjects).write(record)


def started(
    request: StartRequest, run_id: str, request_id: str, carried: tuple[RequestRecord, ...] = ()
) -> WorkflowStarted:
    """The first event of a run."""
    return WorkflowStarted(
        id=1,
        at=100.0,
        workflow_id=request.workflow_id,
        run_id=run_id,
        workflow=request.workflow,
        arguments=request.arguments,
        request_id=request_id,
        execution_deadline=request.execution_deadline,
        memo=request.memo,
        carried=carried,
    )


def completed(result: object, event_id: int = 2) -> WorkflowCompleted:
    """The last event of a successful run."""
    return WorkflowCompleted(id=event_id, at=101.0, result=encode_value(result))


@asynccontextmanager
async def scripted_owner(broker: Broker, subjects: Subjects) -> AsyncIterator[ScriptedOwner]:
    """Own the shard of a namespace made with one shard."""
    assert subjects.shards == 1
    name = f"own-{new_id()}"
    async with broker.open_reader(subjects.inbox_stream(0), name, subjects.inbox_filter(0), ack_wait=None) as reader:
        yield ScriptedOwner(broker, subjects, reader)


async def nothing_arrives(owner: ScriptedOwner, seconds: float) -> None:
    """Fail if a request arrives within so many (virtual) seconds."""
    with trio.move_on_after(seconds):
        message = await owner.request()
        raise AssertionError(f"unexpected request: {message.envelope}")
