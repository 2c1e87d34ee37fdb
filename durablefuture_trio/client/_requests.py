"""Requests to the owner of a workflow: stored in its inbox, answered on the client's own address.

The acknowledgement of the publish means "stored: will be applied once, or refused with an answer". The answer, which
comes after the commit, is what a caller waits for. It is a hint: if it does not come the decision is looked up in the
history, and the request repeated under the same request id, which its owner never applies twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import msgspec
import trio

from durablefuture_trio._ids import new_id, token
from durablefuture_trio.client._decisions import DecisionSearch
from durablefuture_trio.client._reading import Patience
from durablefuture_trio.client._timing import (
    ASK_AGAIN_AFTER_S,
    ASK_AGAIN_MAX_S,
    EXPLAIN_AFTER_S,
    LOOK_AT_LEAST_EVERY_S,
    LOOK_EVERY_S,
    QUERY_AGAIN_AFTER_S,
    RESEND_AFTER_S,
    jittered,
)
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.errors import BrokerUnavailableError, PayloadError, RequestFailedError
from durablefuture_trio.ports.broker import (
    Append,
    AppendOutcome,
    Broker,
    BrokerError,
    Message,
    NoAnswer,
    StoreFull,
    TooLarge,
)
from durablefuture_trio.protocol.envelope import (
    Answer,
    CancelRequest,
    QueryRequest,
    SignalRequest,
    StartRequest,
    TerminateRequest,
    UpdateRequest,
    decode_answer,
    encode_envelope,
    encode_query,
    kind_of,
    request_headers,
)
from durablefuture_trio.protocol.loading import HistoryReader
from durablefuture_trio.protocol.subjects import Subjects

logger = logging.getLogger("durablefuture_trio.client")

Request = StartRequest | TerminateRequest | CancelRequest | SignalRequest | UpdateRequest

_MARGIN_BYTES = 4096
"""Room left for what a server or a gateway adds to a message."""


class _Waiting:
    """A call of `Requests.ask` in progress. Changed by callbacks, which wake the caller through `changed`."""

    __slots__ = ("answer", "changed", "failure", "stored")

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.failure: BrokerError | None = None
        self.stored = False
        self.changed = trio.Event()

    def listen_on(self) -> None:
        """Wait for the next change."""
        self.answer = self.failure = None
        self.changed = trio.Event()

    def on_outcome(self, outcome: AppendOutcome) -> None:
        """What became of the publish."""
        if isinstance(outcome, int):
            self.stored = True
            return
        self.failure = outcome
        self.changed.set()

    def on_answer(self, answer: Answer) -> None:
        """The owner's decision."""
        self.answer = answer
        self.changed.set()


class Requests:
    """The requests of one client. `serve` has to be running."""

    def __init__(self, broker: Broker, subjects: Subjects, reader: HistoryReader) -> None:
        self._broker = broker
        self._subjects = subjects
        self._reader = reader
        self._client = new_id()
        self._waiting: dict[str, list[_Waiting]] = {}

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand answers to those who wait for them; started when subscribed."""
        while True:
            try:
                async with self._broker.listen(self._subjects.answers(self._client)) as messages:
                    task_status.started()
                    async for message in messages:
                        self._deliver(message)
                return
            except NoAnswer as error:
                # Only when entered: afterwards the broker keeps the subscription over reconnects.
                logger.debug("cannot subscribe to answers just now: %r", error)
            await trio.sleep(jittered(1.0))

    def _deliver(self, message: Message) -> None:
        try:
            answer = decode_answer(message.body)
        except msgspec.MsgspecError as error:
            logger.warning(
                "an answer on %s cannot be read (%s); looking in the history instead", message.subject, error
            )
            return
        for waiting in self._waiting.get(answer.request_id, ()):
            waiting.on_answer(answer)

    @contextmanager
    def _awaiting(self, request_id: str) -> Iterator[_Waiting]:
        """Get the answers to a request."""
        waiting = _Waiting()
        self._waiting.setdefault(request_id, []).append(waiting)
        try:
            yield waiting
        finally:
            waiters = self._waiting[request_id]
            waiters.remove(waiting)
            if not waiters:
                del self._waiting[request_id]

    async def ask(self, request: Request, request_id: str) -> Answer:
        """Store a request and wait for its decision, for as long as the caller's scope allows.

        An update is decided by its outcome, which may come long after it was accepted.

        Raises:
            PayloadError: it is larger than the server takes; nothing was sent.
            RequestFailedError: the server has no room; nothing was stored.
            BrokerUnavailableError: the server refuses to store it.
        """
        with self._awaiting(request_id) as waiting:
            return await self._ask(request, request_id, waiting)

    async def _ask(self, request: Request, request_id: str, waiting: _Waiting) -> Answer:
        update_id = request.update_id if isinstance(request, UpdateRequest) else None
        search = DecisionSearch(self._reader, request.workflow_id, request_id, update_id)
        send = self._sender(request, request_id, waiting)
        send()
        now = trio.current_time()
        look_at, explain_at, send_at = now + jittered(LOOK_EVERY_S), now + EXPLAIN_AFTER_S, now + ASK_AGAIN_AFTER_S
        pause, look_pause = ASK_AGAIN_AFTER_S, LOOK_EVERY_S
        patience = Patience()
        while True:
            with trio.move_on_at(min(look_at, explain_at, send_at)):
                await waiting.changed.wait()
            if (answer := waiting.answer) is not None:
                if not _is_accepted_only(request, answer):
                    return answer
                waiting.listen_on()
                search.accepted_in(answer.run_id)
            now = trio.current_time()
            if waiting.failure is not None:
                # A repetition that fails changes nothing about the message that is stored.
                if not patience.outlasts(waiting.failure) and not waiting.stored:
                    raise self._refusal(waiting.failure, request)
                waiting.listen_on()
                send_at = now + jittered(RESEND_AFTER_S)
            if now >= send_at:
                if self._broker.link.up:
                    send()
                    pause = min(2 * pause, ASK_AGAIN_MAX_S)
                    send_at = now + jittered(pause)
                else:
                    send_at = now + jittered(RESEND_AFTER_S)
            if now >= explain_at:
                explain_at = now + 60.0
                self._explain(request, waiting, search)
            if now >= look_at:
                answer = await search.look() if self._broker.link.up else None
                if answer is not None:
                    return answer
                if search.is_accepted:
                    look_pause = min(2 * look_pause, LOOK_AT_LEAST_EVERY_S)
                look_at = trio.current_time() + jittered(look_pause)

    async def query(self, workflow_id: str, run_id: str, name: str, arguments: Payload) -> Answer:
        """Ask the owner of a workflow, again and again until it answers or the caller's scope ends. Nothing is stored.

        Raises:
            PayloadError: it is larger than the server takes; nothing was sent.
        """
        request_id = new_id()
        query = QueryRequest(
            workflow_id=workflow_id,
            run_id=run_id,
            name=name,
            arguments=arguments,
            request_id=request_id,
            reply=self._subjects.answer(self._client, request_id),
        )
        what, body = f"query {name!r} of workflow {workflow_id!r}", encode_query(query)
        limit = self._broker.limits.max_payload_bytes - _MARGIN_BYTES
        if len(body) > limit:
            raise PayloadError(f"{what} takes {len(body)} bytes; the server takes {limit}. Nothing was sent.", path="")
        subject = self._subjects.queries(self._subjects.shard_of(workflow_id))
        explain_at = trio.current_time() + EXPLAIN_AFTER_S
        with self._awaiting(request_id) as waiting:
            while True:
                if self._broker.link.up:
                    self._broker.tell(subject, body)
                with trio.move_on_after(jittered(QUERY_AGAIN_AFTER_S)):
                    await waiting.changed.wait()
                if waiting.answer is not None:
                    return waiting.answer
                if trio.current_time() >= explain_at:
                    explain_at += 60.0
                    logger.warning(
                        "nobody answers the %s yet: its supervisor is busy or gone (link %s); asking on",
                        what,
                        "up" if self._broker.link.up else "down",
                    )

    def _sender(self, request: Request, request_id: str, waiting: _Waiting) -> Callable[[], None]:
        """A function that publishes the request. Without a message id: the server would answer a known one itself, and
        the owner would never see the repetition, nor answer it. The request id is what counts."""
        append = Append(
            subject=self._subjects.inbox(request.workflow_id, kind_of(request)),
            body=encode_envelope(request),
            headers=request_headers(request_id, self._subjects.answer(self._client, token(request_id))),
        )
        return partial(self._broker.append_soon, append, waiting.on_outcome)

    def _refusal(self, error: BrokerError, request: Request) -> Exception:
        """What the server's refusal to store a request means to the user."""
        what = f"{kind_of(request)} of workflow {request.workflow_id!r}"
        refusal: Exception
        match error:
            case TooLarge():
                limit = self._broker.limits.max_payload_bytes
                refusal = PayloadError(
                    f"{what} is too large: the server takes messages of {limit} bytes with their headers. Pass a "
                    "reference to large data instead of the data. Nothing was sent.",
                    path="",
                )
            case StoreFull():
                refusal = RequestFailedError(
                    f"{what} was refused: JetStream has no room left ({error}). Nothing was stored. Free disk space, "
                    "or raise the limits of the server or the account, and try again."
                )
            case _:
                refusal = BrokerUnavailableError(
                    f"{what} could not be stored: {error}. Nothing was stored. Check that namespace "
                    f"{self._subjects.namespace!r} is set up (a supervisor does that) and that this user may write."
                )
        refusal.__cause__ = error
        return refusal

    def _explain(self, request: Request, waiting: _Waiting, search: DecisionSearch) -> None:
        what = f"{kind_of(request)} of workflow {request.workflow_id!r}"
        if search.is_accepted:
            logger.info("%s is accepted; waiting for its handler to return", what)
        elif waiting.stored:
            logger.warning(
                "%s is stored and will not be lost; still waiting for a supervisor of namespace %r to decide it "
                "(is one with the role 'workflows' running?)",
                what,
                self._subjects.namespace,
            )
        else:
            logger.warning(
                "%s is not known to be stored yet: the server does not answer (link %s); trying on",
                what,
                "up" if self._broker.link.up else "down",
            )


def _is_accepted_only(request: Request, answer: Answer) -> bool:
    """Whether this is a word about an update on its way, and not its outcome: a handler that returns gives a result."""
    return isinstance(request, UpdateRequest) and answer.answer == "applied" and answer.result is None
