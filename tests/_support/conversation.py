"""A run that is told and asked things, by an owner small enough to see through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from durablefuture_trio import codec
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.commands import (
    Command,
    CompleteUpdate,
    CompleteWorkflow,
    ContinueAsNew,
    FailWorkflow,
)
from durablefuture_trio.history.events import (
    CancelRequested,
    CarriedSignal,
    CarriedUpdate,
    SignalReceived,
    UpdateAccepted,
    WorkflowStarted,
)
from durablefuture_trio.ports.frames import Loaded, LoadRun, LogLine, Missing, Queried, Query, ValidateUpdate
from durablefuture_trio.sandbox._host import ReplayHost
from tests._support.sandbox import START, Story


class Conversation(Story):
    """A run of one workflow on a host of its own.

    Args:
        definition: the workflow.
        arguments: of the run.
        started: fields of its `WorkflowStarted` beside the usual ones.
    """

    def __init__(self, definition: Any, arguments: Sequence[Any] = (), **started: Any) -> None:
        self.registry = Registry.of([definition])
        (name,) = self.registry.workflows
        super().__init__(self.new_host(), name, arguments)
        self._fields = started

    def new_host(self) -> ReplayHost:
        return ReplayHost(self.registry.workflows)

    def started(self) -> WorkflowStarted:
        usual = super().started()
        fields = {name: getattr(usual, name) for name in ("id", "at", "workflow_id", "run_id", "workflow", "arguments")}
        return WorkflowStarted(**{**fields, **self._fields})

    # --- told ---------------------------------------------------------------------------------------------------------

    def signal(self, name: str, *args: Any, after: float = 0.0) -> list[Command]:
        return self.apply(
            SignalReceived(id=self.next_id, at=self.at + after, name=name, arguments=codec.encode_arguments(args))
        )

    def update(self, update_id: str, name: str, *args: Any, after: float = 0.0) -> list[Command]:
        return self.apply(
            UpdateAccepted(
                id=self.next_id,
                at=self.at + after,
                update_id=update_id,
                name=name,
                arguments=codec.encode_arguments(args),
            )
        )

    def cancel(self, reason: str = "", *, after: float = 0.0) -> list[Command]:
        return self.apply(CancelRequested(id=self.next_id, at=self.at + after, reason=reason))

    # --- asked --------------------------------------------------------------------------------------------------------

    def query(self, name: str, *args: Any) -> Any:
        """The value of the answer; raises what the query raised."""
        answer = self.queried(name, *args)
        if answer.failure is not None:
            raise codec.exception_of(answer.failure)
        assert answer.result is not None
        return codec.decode_value(answer.result, Any)

    def queried(self, name: str, *args: Any) -> Queried:
        return self._answered(
            Query(
                exchange=1,
                run_id=self.run_id,
                activation=self.activations,
                name=name,
                arguments=codec.encode_arguments(args),
            )
        )

    def validate(self, name: str, *args: Any) -> None:
        """Raises what refuses the update."""
        answer = self._answered(
            ValidateUpdate(
                exchange=1,
                run_id=self.run_id,
                activation=self.activations,
                name=name,
                arguments=codec.encode_arguments(args),
            )
        )
        assert answer.result is None
        if answer.failure is not None:
            raise codec.exception_of(answer.failure)

    def _answered(self, frame: Query | ValidateUpdate) -> Queried:
        """A run that is not cached is loaded first, as an owner does."""
        (answer,) = self.host.handle(frame)
        if isinstance(answer, Missing):
            self.load(keep=True)
            (answer, *_) = self.host.handle(frame)
        assert isinstance(answer, Queried), answer
        return answer

    def load(self, *, keep: bool = False) -> None:
        """Replay the history into this host."""
        frames = self.host.handle(
            LoadRun(exchange=1, run_id=self.run_id, commits=self.bodies(), first=True, last=True, keep=keep)
        )
        assert any(isinstance(frame, Loaded) for frame in frames), frames

    # --- what came of it ----------------------------------------------------------------------------------------------

    @property
    def lines(self) -> list[str]:
        """What the last answer said to people."""
        return [frame.message for frame in self.frames if isinstance(frame, LogLine)]

    def assert_replays(self) -> None:
        """In a fresh host the history leads to the same commands, says nothing, and waits for the same time."""
        live = self.wake_at
        answer = self.replay(self.new_host())
        assert isinstance(answer, Loaded), answer
        assert answer.unmatched == ()
        assert answer.wake_at == live
        assert self.lines == []


def result_of(commands: Sequence[Command]) -> Any:
    """What the workflow has returned."""
    last = commands[-1]
    assert isinstance(last, CompleteWorkflow), commands
    return codec.decode_value(last.result, Any)


def failure_of(commands: Sequence[Command]) -> BaseException:
    """What the workflow has raised."""
    last = commands[-1]
    assert isinstance(last, FailWorkflow), commands
    return codec.exception_of(last.failure)


def answers_in(commands: Sequence[Command]) -> dict[str, Any]:
    """What became of updates, by id: the result, or the exception."""
    return {
        command.update_id: codec.exception_of(command.failure)
        if command.failure is not None
        else codec.decode_value(command.result or Payload(b"null"), Any)
        for command in commands
        if isinstance(command, CompleteUpdate)
    }


def next_run(story: Conversation, definition: Any, **more: Any) -> Conversation:
    """The run that the last command of `story` asks for, as an owner starts it."""
    last = story.commands[-1]
    assert isinstance(last, ContinueAsNew), story.commands
    following = Conversation(
        definition, (), signals=last.signals, updates=last.updates, continued_from=story.run_id, **more
    )
    following._arguments = last.arguments
    return following


def carried(name: str, *args: Any) -> CarriedSignal:
    return CarriedSignal(name, codec.encode_arguments(args))


def carried_update(update_id: str, name: str, *args: Any) -> CarriedUpdate:
    return CarriedUpdate(update_id, name, codec.encode_arguments(args))


__all__ = [
    "START",
    "Conversation",
    "answers_in",
    "carried",
    "carried_update",
    "failure_of",
    "next_run",
    "result_of",
]
