"""What a run offers its code, and the host, of messages: handlers, channels, conditions, questions from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from durablefuture_trio import codec
from durablefuture_trio.authoring._messages import MessageDefinition
from durablefuture_trio.authoring._runtime import current_run
from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.errors import SandboxViolationError
from durablefuture_trio.history.events import WorkflowStarted
from durablefuture_trio.sandbox._asked import AskedCommands
from durablefuture_trio.sandbox._conditions import Conditions
from durablefuture_trio.sandbox._endings import leaves
from durablefuture_trio.sandbox._guards import Guards
from durablefuture_trio.sandbox._messages import Messages
from durablefuture_trio.sandbox._sources import source_here
from durablefuture_trio.sandbox._trio_driver import RunDropped, TrioDriver

MAX_NOTES = 100
"""Notes kept until the host takes them: an activation that has more to say is not listened to."""


ONLY_LOOKS = "only looks at what the run holds"


class _Reading:
    """A query or a validator is being called."""

    __slots__ = ("violation", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.violation: SandboxViolationError | None = None


class RunMessages:
    """The part of `WorkflowRun` that deals with messages; see `authoring._runtime.WorkflowRuntime` for what each does.

    Attributes:
        spoiled: a query tried to change the run, and may have managed in part: it has to be loaded again.
    """

    _started: WorkflowStarted
    _closing: bool
    _replaying: bool
    if TYPE_CHECKING:

        @property
        def beyond_history(self) -> bool: ...

    _driver: TrioDriver
    _messages: Messages
    _asked: AskedCommands

    def __init__(self) -> None:
        super().__init__()
        self._conditions = Conditions()
        self._cancel_reason: str | None = None
        self._reading: _Reading | None = None
        self._notes: list[tuple[str, str]] = []
        self.spoiled = False

    # --- WorkflowRuntime ----------------------------------------------------------------------------------------------

    def add_handler(
        self,
        message: MessageDefinition[..., Any],
        call: Callable[..., Any],
        *,
        is_async: bool,
        owner: object | None = None,
    ) -> None:
        """Handle messages with `call` from now on; `owner` is the object of a workflow class."""
        self.refuse(f"a handler of {message.kind} {message.name!r}")
        self._messages.add_handler(message, call, owner, is_async=is_async)

    def add_validator(self, update: str, validator: Callable[..., Any]) -> None:
        """Ask `validator` before updates of this name are accepted."""
        self.refuse(f"a validator of update {update!r}")
        self._messages.add_validator(update, validator)

    async def handlers_begun(self) -> None:
        """Let the handlers of messages that were waiting make their first step."""
        await self._messages.begun()

    def hold_messages(self) -> None:
        """The run is about to continue as new: what it has not taken is the next run's."""
        if not self._closing:
            self._messages.hold()

    def signal_channel(self, name: str, decode: Callable[[Payload], Any]) -> Any:
        """A channel of the values of a signal."""
        self.refuse(f"signal_channel({name!r})")
        return self._messages.channel(name, decode)

    async def wait_until(self, predicate: Callable[[], Any]) -> Any:
        """Wait until `predicate` is truthy; gives what it returned."""
        self.refuse("wait_until")
        return await self._conditions.wait_until(predicate)

    @property
    def cancel_reason(self) -> str | None:
        """Why somebody wants the run to end; None: nobody does."""
        return self._cancel_reason

    def last_result(self, hint: Any) -> Any:
        """What the last completed run of the chain returned; None: there is none."""
        payload = self._started.last_result
        return None if payload is None else codec.decode_value(payload, hint)

    # --- looking without changing -------------------------------------------------------------------------------------

    def refuse(self, what: str) -> None:
        """Raise if the code may not ask for anything now: a query or a validator is running, or the run is dropped."""
        if self._closing:
            raise RunDropped
        if self._reading is not None:
            source = source_here(2)
            error = SandboxViolationError(
                f"{self._reading.what} {ONLY_LOOKS}, but it used {what}{f' at {source}' if source else ''}: do that in "
                "the workflow, or in the handler of a signal or an update",
                source=source,
            )
            self.violated(error)
            raise error

    def violated(self, error: SandboxViolationError) -> None:
        """Block the run, or fail what is being asked, whatever becomes of the exception in user code."""
        raise NotImplementedError

    def read_only(self, what: str, look: Callable[[], Any]) -> Any:
        """Call `look` and see to it that it asks for nothing.

        Raises:
            SandboxViolationError: it did, even if it has swallowed the error.
        """
        outer, self._reading = self._reading, _Reading(what)
        try:
            result = look()
            if inspect.iscoroutine(result):
                result.close()
                self.refuse("a coroutine, which it returned instead of a value")
            if self._reading.violation is not None:
                raise self._reading.violation
            return result
        finally:
            self._reading = outer

    def query(self, name: str, arguments: Payload) -> tuple[Payload | None, Failure | None]:
        """Answer a query: the result, or what it raised."""
        return self._ask(lambda: self._messages.answer(name, arguments))

    def validate_update(self, name: str, arguments: Payload) -> Failure | None:
        """Ask the validator of an update; None: it may be accepted."""
        return self._ask(lambda: self._messages.validate(name, arguments))[1]

    def _ask(self, question: Callable[[], Payload | None]) -> tuple[Payload | None, Failure | None]:
        replaying, self._replaying = self._replaying, False
        whole: Any = self  # what it is a part of
        try:
            with Guards(whole):
                context = copy_context()
                context.run(current_run.set, whole)
                answer = context.run(self._driver.look, question)
                if self._asked.anything:
                    raise SandboxViolationError(f"a query or a validator {ONLY_LOOKS}, but it cancelled a call")
                return answer, None
        except Exception as error:  # noqa: BLE001 - the answer, whatever it is
            if any(isinstance(leaf, SandboxViolationError) for leaf in leaves(error)):
                self.spoiled = True
            return None, self._failure_record(error)
        finally:
            self._asked.forget()
            self._replaying = replaying

    def _failure_record(self, error: BaseException) -> Failure:
        raise NotImplementedError

    # --- for people ---------------------------------------------------------------------------------------------------

    def note(self, level: str, message: str) -> None:
        """Tell people, unless recorded history is repeated."""
        repeated = self._replaying and not self.beyond_history
        if not repeated and not self._closing and len(self._notes) < MAX_NOTES:
            self._notes.append((level, message))

    def take_notes(self) -> list[tuple[str, str]]:
        """What there is to tell: level and message."""
        notes, self._notes = self._notes, []
        return notes
