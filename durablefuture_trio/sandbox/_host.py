"""The replay process as a value: frames in, frames out. `__main__` plugs it to a socket; simulators call it."""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.commands import Command
from durablefuture_trio.engine.replay import CommandMatcher
from durablefuture_trio.errors import HistoryError, NondeterminismError
from durablefuture_trio.history.commit import Commit, decode_commit, own_events
from durablefuture_trio.history.events import Event, EventClass, Stimulus, WorkflowStarted, class_of
from durablefuture_trio.ports.frames import (
    Activate,
    Activated,
    Blocked,
    Evict,
    Evicted,
    Loaded,
    LoadRun,
    LogLine,
    Missing,
    Queried,
    Query,
    SandboxDown,
    SandboxUp,
    ValidateUpdate,
)
from durablefuture_trio.sandbox._blocked import RunBlockedError, blocked_frame
from durablefuture_trio.sandbox._run import RunnableWorkflow, WorkflowRun
from durablefuture_trio.sandbox._tail import Tail, unfinished_tail

DEFAULT_CACHED_WORKFLOWS = 1000

MAX_LOADED_AHEAD = 64
"""Runs that were loaded and not activated since stay in memory even when the cache is smaller: a run that was dropped
between its loading and the activation it was loaded for would be loaded for ever."""


class ActivationWatch(Protocol):
    """Told where activations begin and end, so that someone outside can see one that does not end."""

    def begin(self) -> None: ...

    def end(self) -> None: ...


class _NoWatch:
    def begin(self) -> None:
        pass

    def end(self) -> None:
        pass


class ReplayHost:
    """Holds cached runs, replays histories, activates stimuli. Sans I/O; everything happens in `handle`.

    Args:
        workflows: the registered definitions by name.
        cached_workflows: how many runs are kept in memory, least recently used first to go; 0 is allowed.
        strict_code: digest of the code whose own commits have to be repeated to the byte, arguments and results too:
            then differing ones block the run. What other code wrote may differ in them, and is logged.
        watch: told where activations begin and end.
    """

    def __init__(
        self,
        workflows: Mapping[str, RunnableWorkflow],
        *,
        cached_workflows: int = DEFAULT_CACHED_WORKFLOWS,
        strict_code: str = "",
        watch: ActivationWatch | None = None,
    ) -> None:
        self._workflows = workflows
        self._limit = cached_workflows
        self._strict_code = strict_code
        self._watch: ActivationWatch = watch or _NoWatch()
        self._runs: OrderedDict[str, WorkflowRun] = OrderedDict()
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._loading: dict[str, _Replay] = {}
        self._evicted: list[WorkflowRun] = []
        self._made_room: list[SandboxUp] = []

    @property
    def cached(self) -> tuple[str, ...]:
        """The ids of the runs in memory, least recently used first."""
        return tuple(self._runs)

    def handle(self, frame: SandboxDown) -> list[SandboxUp]:
        """Take one frame; gives the answers to it, and `Evicted` for what had to make room.

        ``Hello`` and ``Bye`` are the process' business and ignored.
        """
        match frame:
            case Activate():
                answers = self._activate(frame)
            case LoadRun():
                answers = self._load(frame)
            case Query() | ValidateUpdate():
                answers = [self._ask(frame)]
            case Evict():
                self._loading_stopped(frame.run_id)
                self._forget(frame.run_id)
                return []
            case _:
                return []
        self._shrink(answers)
        return answers

    def close_evicted(self) -> None:
        """End the runs that were dropped. Apart from `handle`, so that answers can leave first."""
        while self._evicted:
            self._evicted.pop().close()

    def close(self) -> None:
        """Drop every run."""
        for run_id in list(self._loading):
            self._loading_stopped(run_id)
        for run_id in list(self._runs):
            self._forget(run_id)
        self.close_evicted()

    # --- activation ---------------------------------------------------------------------------------------------------

    def _activate(self, frame: Activate) -> list[SandboxUp]:
        run = self._runs.get(frame.run_id)
        try:
            if frame.activation == 1 and isinstance(frame.stimulus, WorkflowStarted):
                self._forget(frame.run_id)
                run = self._runs[frame.run_id] = self._new_run(frame.stimulus)
            elif run is None or run.activations != frame.activation - 1:
                self._forget(frame.run_id)
                return [Missing(exchange=frame.exchange, run_id=frame.run_id)]
            commands = self._watched(run, frame.stimulus, replaying=False)
        except Exception as error:  # noqa: BLE001 - user code must not take down the other runs of this process
            self._forget(frame.run_id)
            return [self._blocked(error, frame.exchange, frame.run_id)]
        self._runs.move_to_end(frame.run_id)
        self._loaded.pop(frame.run_id, None)
        wake_at = run.wake_at
        if run.finished:
            self._forget(frame.run_id)
        return [
            *_lines_of(run, frame.run_id),
            Activated(exchange=frame.exchange, run_id=frame.run_id, commands=tuple(commands), wake_at=wake_at),
        ]

    def _new_run(self, started: WorkflowStarted) -> WorkflowRun:
        definition = self._workflows.get(started.workflow)
        if definition is None:
            names = ", ".join(sorted(self._workflows)) or "none"
            raise RunBlockedError(
                f"workflow {started.workflow!r} is not registered here. Registered are: {names}. Add the module that "
                "defines it to `modules`, or run a supervisor that has it.",
                kind="unknown_workflow",
            )
        return WorkflowRun(definition, started)

    def _watched(self, run: WorkflowRun, stimulus: Stimulus, *, replaying: bool) -> list[Command]:
        self._watch.begin()
        try:
            return run.activate(stimulus, replaying=replaying)
        finally:
            self._watch.end()

    # --- questions ----------------------------------------------------------------------------------------------------

    def _ask(self, frame: Query | ValidateUpdate) -> SandboxUp:
        run = self._runs.get(frame.run_id)
        if run is None or run.activations != frame.activation:
            self._forget(frame.run_id)
            return Missing(exchange=frame.exchange, run_id=frame.run_id)
        result: Payload | None = None
        self._watch.begin()
        try:
            if isinstance(frame, Query):
                result, failure = run.query(frame.name, frame.arguments)
            else:
                failure = run.validate_update(frame.name, frame.arguments)
        finally:
            self._watch.end()
        if run.spoiled:
            self._forget(frame.run_id)
        else:
            self._runs.move_to_end(frame.run_id)
        if run.finished:
            self._loaded.pop(frame.run_id, None)
        return Queried(exchange=frame.exchange, run_id=frame.run_id, result=result, failure=failure)

    # --- replay -------------------------------------------------------------------------------------------------------

    def _load(self, frame: LoadRun) -> list[SandboxUp]:
        if frame.first:
            self._loading_stopped(frame.run_id)
            self._forget(frame.run_id)
            self._loading[frame.run_id] = _Replay(frame.run_id, patches=frame.patches)
        replay = self._loading.get(frame.run_id)
        if replay is None:
            return [Missing(exchange=frame.exchange, run_id=frame.run_id)] if frame.last else []
        try:
            commits = replay.decode(frame.commits)
            tail = unfinished_tail(commits) if frame.last else {}
            for commit in commits:
                self._replay_commit(replay, commit, tail)
        except Exception as error:  # noqa: BLE001 - user code must not take down the other runs of this process
            replay.error = error
        if not frame.last:
            return []
        del self._loading[frame.run_id]
        return self._finish_loading(replay, frame)

    def _replay_commit(self, replay: _Replay, commit: Commit, tail: Tail) -> None:
        replay.matcher.strict = bool(self._strict_code) and commit.code_hash == self._strict_code
        for event in own_events(commit):
            event_class = class_of(event)
            if event_class is EventClass.COMMAND:
                replay.matcher.record(event)
            elif event_class is EventClass.STIMULUS:
                if isinstance(event, WorkflowStarted):
                    replay.begin(self._new_run(event))
                run = replay.started_run(event)
                run.recorded_ahead = tail.get(event.id)
                replay.matcher.produce(self._watched(run, event, replaying=True))  # type: ignore[arg-type] # its class says that it is a stimulus
        replay.matcher.end_commit(finished=commit.finished)

    def _finish_loading(self, replay: _Replay, frame: LoadRun) -> list[SandboxUp]:
        warnings: list[SandboxUp] = [
            LogLine(level="WARNING", logger="durablefuture_trio.replay", message=warning, run_id=frame.run_id)
            for warning in replay.matcher.warnings
        ]
        run = replay.run
        if replay.error is not None or run is None:
            if run is not None:
                self._evicted.append(run)
            error = replay.error or replay.empty()
            return [*warnings, self._blocked(error, frame.exchange, frame.run_id)]
        answer = Loaded(
            exchange=frame.exchange, run_id=frame.run_id, unmatched=replay.matcher.unmatched, wake_at=run.wake_at
        )
        if run.finished and not frame.keep:
            self._evicted.append(run)
        else:
            run.recorded_ahead = None
            self._runs[frame.run_id] = run
            self._loaded[frame.run_id] = None
        return [*warnings, *_lines_of(run, frame.run_id), answer]

    def _loading_stopped(self, run_id: str) -> None:
        replay = self._loading.pop(run_id, None)
        if replay is not None and replay.run is not None:
            self._evicted.append(replay.run)

    # --- the cache ----------------------------------------------------------------------------------------------------

    def _shrink(self, answers: list[SandboxUp]) -> None:
        if self._made_room:
            answers += self._made_room
            self._made_room.clear()
        while len(self._loaded) > MAX_LOADED_AHEAD:
            self._loaded.popitem(last=False)
        if len(self._runs) <= self._limit:
            return
        for run_id in [run_id for run_id in self._runs if run_id not in self._loaded]:
            if len(self._runs) <= self._limit:
                break
            self._forget(run_id)
            answers.append(Evicted(run_id=run_id))

    def _make_room(self) -> None:
        """Half of the cache goes: the next run must not meet the memory limit for what others keep."""
        for run_id in list(self._runs)[: (len(self._runs) + 1) // 2]:
            self._forget(run_id)
            self._made_room.append(Evicted(run_id=run_id))

    def _forget(self, run_id: str) -> None:
        self._loaded.pop(run_id, None)
        run = self._runs.pop(run_id, None)
        if run is not None:
            self._evicted.append(run)

    def _blocked(self, error: Exception, exchange: int, run_id: str) -> Blocked:
        if isinstance(error, MemoryError) or getattr(error, "out_of_memory", False):
            self._make_room()
        if isinstance(error, RunBlockedError | NondeterminismError):
            return blocked_frame(error, exchange=exchange, run_id=run_id)
        if isinstance(error, HistoryError):
            return Blocked(exchange=exchange, run_id=run_id, kind="history", message=error.message)
        if isinstance(error, MemoryError):
            message = (
                "the replay process ran into its memory limit: raise `memory_limit_mb` in [sandbox], cache fewer "
                "workflows, or keep large values in activities"
            )
        else:
            message = f"the run could not be activated: {error!r}"
        stack = "".join(traceback.format_exception(error))
        return Blocked(exchange=exchange, run_id=run_id, kind="crashed", message=message, stack=stack)


def _lines_of(run: WorkflowRun, run_id: str) -> list[SandboxUp]:
    return [
        LogLine(level=level, logger="durablefuture_trio.workflow", message=message, run_id=run_id)
        for level, message in run.take_notes()
    ]


class _Replay:
    """A history on its way in, commit by commit."""

    def __init__(self, run_id: str, *, patches: tuple[str, ...]) -> None:
        self.run_id = run_id
        self.patches = frozenset(patches)
        self.matcher = CommandMatcher()
        self.run: WorkflowRun | None = None
        self.error: Exception | None = None
        self._commits = 0
        self._first_n = 0

    def decode(self, bodies: tuple[bytes, ...]) -> list[Commit]:
        """The next commits; none after an error."""
        return [self._decode(body) for body in bodies] if self.error is None else []

    def _decode(self, body: bytes) -> Commit:
        # Its subject is not known here; what the run and its number are is.
        place = f"of run {self.run_id}, number {self._first_n + self._commits}"
        commit = decode_commit(body, subject=place, sequence=self._first_n + self._commits)
        if self._commits == 0:
            self._first_n = commit.first_n
        self._commits += 1
        if commit.run_id != self.run_id:
            raise HistoryError(
                f"history message {place} belongs to run {commit.run_id}: it was loaded with the wrong numbers",
                subject=place,
                sequence=self._first_n + self._commits - 1,
            )
        return commit

    def begin(self, run: WorkflowRun) -> None:
        """The history's first event was met."""
        if self.run is not None:
            raise self._broken("has a second WorkflowStarted")
        run.history_patches = self.patches
        self.run = run

    def started_run(self, event: Event) -> WorkflowRun:
        """The run `event` is for."""
        if self.run is None:
            raise self._broken(f"has {type(event).__name__} (event {event.id}) before WorkflowStarted")
        return self.run

    def empty(self) -> HistoryError:
        """Nothing was loaded."""
        return self._broken("has no WorkflowStarted")

    def _broken(self, what: str) -> HistoryError:
        number = self._first_n + max(self._commits - 1, 0)
        return HistoryError(
            f"the history of run {self.run_id} {what}, at number {number}: the run waits; restore the stream from a "
            "backup",
            subject=self.run_id,
            sequence=number,
        )
