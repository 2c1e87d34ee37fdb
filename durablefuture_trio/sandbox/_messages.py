"""What reaches a run by name: signals, updates, queries; who handles them, and what waits for somebody who does."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any, Protocol

import trio

from durablefuture_trio import codec
from durablefuture_trio.authoring._messages import MessageDefinition, UpdateDefinition
from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine.commands import CompleteUpdate
from durablefuture_trio.errors import RequestFailedError, UpdateRejectedError
from durablefuture_trio.history.events import CarriedSignal, CarriedUpdate
from durablefuture_trio.sandbox._asked import AskedCommands
from durablefuture_trio.sandbox._endings import only_cancelled
from durablefuture_trio.sandbox._signal_channel import Mailbox, ReceivedSignal, SignalChannel
from durablefuture_trio.sandbox._sources import source_of_traceback


class HandlingRun(Protocol):
    """What the handling of messages needs of its run."""

    def note(self, level: str, message: str) -> None:
        """Tell people, unless recorded history is repeated."""
        ...

    def read_only(self, what: str, look: Callable[[], Any]) -> Any:
        """Call something that must not change the run."""
        ...

    def failure_of_handler(self, error: BaseException, what: str) -> Failure | None:
        """What is recorded of an exception that left a handler; None: it ends more than that, and is to be raised."""
        ...


class _Handler:
    __slots__ = ("call", "is_async", "message", "owner")

    def __init__(
        self, message: MessageDefinition[..., Any], call: Callable[..., Any], owner: object | None, *, is_async: bool
    ) -> None:
        self.message = message
        self.call = call
        self.owner = owner
        self.is_async = is_async

    async def run(self, arguments: tuple[Any, ...]) -> Any:
        result = self.call(*arguments)
        return await result if self.is_async else result


class Messages:
    """The messages of one run and their handlers.

    Args:
        run: see `HandlingRun`.
        asked: takes the commands that complete updates.
        context: what the tasks of handlers inherit.
    """

    def __init__(self, run: HandlingRun, asked: AskedCommands, context: Context) -> None:
        self._run = run
        self._asked = asked
        self._context = context
        self._handlers: dict[tuple[str, str], _Handler] = {}
        self._validators: dict[str, Callable[..., Any]] = {}
        self._nursery: trio.Nursery | None = None
        self._held = False
        self._mail = Mailbox()
        self._signals: dict[int, ReceivedSignal] = {}
        self._received = 0
        self._updates: dict[str, CarriedUpdate] = {}
        self._waiting: dict[str, deque[tuple[CarriedUpdate, bool]]] = {}
        self._tasks = 0

    # --- from outside, inside the Trio program ------------------------------------------------------------------------

    def open(self, nursery: trio.Nursery) -> None:
        """The run's code begins; handlers become tasks of `nursery`."""
        self._nursery = nursery

    def hold(self) -> None:
        """No handler begins any more: what has not been taken goes on to the next run."""
        self._held = self._mail.held = True

    def release(self) -> None:
        """There will be no next run after all."""
        self._held = self._mail.held = False
        for kind, name in list(self._handlers):
            self._hand_over(kind, name)
        self._mail.wake_all()

    def signal(self, carried: CarriedSignal) -> None:
        """A signal has come."""
        self._received += 1
        signal = ReceivedSignal(self._received, carried)
        if ("signal", carried.name) in self._handlers and not self._held:
            self._start_signal(signal)
        else:
            self._mail.put(signal)

    def update(self, update: CarriedUpdate) -> None:
        """An update was accepted. If there is a handler, its validator has had its say."""
        self._updates[update.update_id] = update
        has_handler = ("update", update.name) in self._handlers
        if has_handler and not self._held:
            self._start(f"update {update.name}", self._run_update, update, True)
        else:
            self._wait(update, validated=has_handler)

    def _wait(self, update: CarriedUpdate, *, validated: bool) -> None:
        self._waiting.setdefault(update.name, deque()).append((update, validated))

    # --- from the code of the run -------------------------------------------------------------------------------------

    def add_handler(
        self, message: MessageDefinition[..., Any], call: Callable[..., Any], owner: object | None, *, is_async: bool
    ) -> None:
        """Handle messages of this kind and name from now on, beginning with those that wait.

        Raises:
            RuntimeError: a channel for the signal is open.
        """
        key = (message.kind, message.name)
        if message.kind == "signal" and self._mail.has_channel(message.name):
            raise RuntimeError(
                f"signal {message.name!r} goes to a signal_channel that is open: close it before you handle the signal"
            )
        if key in self._handlers and message.kind == "update":
            self._validators.pop(message.name, None)  # it belonged to the handler before
        self._handlers[key] = _Handler(message, call, owner, is_async=is_async)
        if not self._held:
            self._hand_over(message.kind, message.name)

    def _hand_over(self, kind: str, name: str) -> None:
        if kind == "signal":
            for signal in self._mail.take_all(name):
                self._start_signal(signal)
        elif kind == "update":
            for update, validated in self._waiting.pop(name, ()):
                self._start(f"update {name}", self._run_update, update, validated)

    def add_validator(self, name: str, validator: Callable[..., Any]) -> None:
        """Ask `validator` before updates of this name are accepted."""
        self._validators[name] = validator

    async def begun(self) -> None:
        """Wait until every handler that was started has made its first step."""
        if self._tasks:
            # The tasks of a batch run in the order they were spawned in, so this one is first in theirs.
            await trio.lowlevel.cancel_shielded_checkpoint()
            await trio.lowlevel.cancel_shielded_checkpoint()

    def channel(self, name: str, decode: Callable[[Payload], Any]) -> SignalChannel[Any]:
        """A channel of the signals of this name, beginning with those that wait.

        Raises:
            RuntimeError: the signal has a handler.
        """
        if ("signal", name) in self._handlers:
            raise RuntimeError(f"signal {name!r} has a handler, which takes it: use one of the two")
        return SignalChannel(self._mail, name, decode, partial(self._undecodable, name))

    # --- questions ----------------------------------------------------------------------------------------------------

    def answer(self, name: str, payload: Payload) -> Payload:
        """The answer to a query; raises what its handler raises.

        Raises:
            RequestFailedError: there is no such query, or its arguments do not fit.
        """
        handler = self._handlers.get(("query", name))
        if handler is None:
            known = ", ".join(sorted(name for kind, name in self._handlers if kind == "query"))
            raise RequestFailedError(
                f"the workflow has no query {name!r}. It has: {known or 'none so far'}. A query that is defined inside "
                "the workflow function is known once the run has come that far."
            )
        try:
            arguments = handler.message.decode(payload)
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            raise RequestFailedError(f"the arguments do not fit query {name!r}: {_words(error)}") from error
        call = partial(handler.call, *arguments)
        return codec.encode_value(self._run.read_only(f"query {name!r}", call))

    def validate(self, name: str, payload: Payload) -> None:
        """Ask the validator of an update, if there is a handler; raises what refuses it."""
        handler = self._handlers.get(("update", name))
        if handler is not None:
            self._check(handler, handler.message.decode(payload))

    # --- the end of the run -------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> tuple[str, ...]:
        """The handlers that were cut off, and the updates that nobody carried out, in words."""
        signals = [f"signal {self._signals[number].carried.name!r}" for number in sorted(self._signals)]
        return (*signals, *(f"update {update.name!r} ({key})" for key, update in self._updates.items()))

    @property
    def untaken(self) -> tuple[str, ...]:
        """The signals that no handler and no channel has taken, in words."""
        counts = Counter(signal.carried.name for signal in self._mail.everything().values())
        return tuple(f"signal {name!r} ({count})" for name, count in sorted(counts.items()))

    def left_over(self) -> tuple[tuple[CarriedSignal, ...], tuple[CarriedUpdate, ...]]:
        """What the next run gets: signals that were not taken or whose handler was cut off, in the order they came in;
        updates that were not completed."""
        signals = {**self._signals, **self._mail.everything()}
        return tuple(signals[number].carried for number in sorted(signals)), tuple(self._updates.values())

    def forget(self) -> None:
        """Let go of everything: the run is dropped."""
        self._handlers.clear()
        self._validators.clear()
        # They lead back here, round in circles.
        self._nursery = None
        self._context = Context()
        del self._run

    # --- handlers as tasks --------------------------------------------------------------------------------------------

    def _start_signal(self, signal: ReceivedSignal) -> None:
        self._signals[signal.number] = signal
        self._start(f"signal {signal.carried.name}", self._run_signal, signal)

    def _start(self, name: str, task: Callable[..., Any], *args: Any) -> None:
        assert self._nursery is not None  # there are no handlers before the code begins
        self._tasks += 1
        self._context.run(partial(self._nursery.start_soon, task, *args, name=name))

    async def _run_signal(self, signal: ReceivedSignal) -> None:
        if self._held:
            del self._signals[signal.number]
            self._mail.put(signal)
            return
        carried = signal.carried
        handler = self._handlers["signal", carried.name]
        try:
            arguments = handler.message.decode(carried.arguments)
        except (MemoryError, RecursionError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a user's class raises while it is rebuilt
            self._undecodable(carried.name, error)
            del self._signals[signal.number]
            return
        try:
            await handler.run(arguments)
        except BaseException as error:
            if not only_cancelled(error):
                del self._signals[signal.number]
            raise
        del self._signals[signal.number]

    def _undecodable(self, name: str, error: Exception) -> None:
        self._run.note(
            "WARNING", f"signal {name!r} was left out, for its arguments do not fit its handler: {_words(error)}"
        )

    async def _run_update(self, update: CarriedUpdate, validated: bool) -> None:
        if self._held:
            self._wait(update, validated=validated)
            return
        handler = self._handlers["update", update.name]
        refusal: BaseException | None = None
        try:
            arguments = handler.message.decode(update.arguments)
            if not validated:
                self._check(handler, arguments)
        except Exception as error:  # noqa: BLE001 - whatever a validator raises refuses the update
            refusal = error
        if refusal is not None:
            failure = self._run.failure_of_handler(_refusal_of(update, refusal), f"update {update.name!r}")
            self._complete(update, CompleteUpdate(update_id=update.update_id, failure=failure, source=_place(refusal)))
            refusal = None  # its traceback leads back here, round in circles
            return
        try:
            result = codec.encode_value(await handler.run(arguments))
        except BaseException as error:
            failure = self._run.failure_of_handler(error, f"update {update.name!r}")
            if failure is None:
                raise
            self._complete(update, CompleteUpdate(update_id=update.update_id, failure=failure, source=_place(error)))
        else:
            self._complete(update, CompleteUpdate(update_id=update.update_id, result=result))

    def _check(self, handler: _Handler, arguments: tuple[Any, ...]) -> None:
        message = handler.message
        validator = self._validators.get(message.name)
        if validator is None and isinstance(message, UpdateDefinition):
            validator = message.validator_of(handler.owner)
        if validator is not None:
            self._run.read_only(f"the validator of update {message.name!r}", partial(validator, *arguments))

    def _complete(self, update: CarriedUpdate, command: CompleteUpdate) -> None:
        self._asked.add(command)
        del self._updates[update.update_id]


def _place(error: BaseException) -> str:
    return source_of_traceback(error.__traceback__)


def _refusal_of(update: CarriedUpdate, error: BaseException) -> UpdateRejectedError:
    refusal = UpdateRejectedError(f"update {update.name!r} was refused: {_words(error)}", cause=error)
    refusal.__cause__ = error
    return refusal


def _words(error: BaseException) -> str:
    # Not str(): that of a user's class may raise.
    return codec.failure_of(error).message
