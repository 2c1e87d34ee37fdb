"""The place of one replay process, and the questions it owes an answer to."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import trio

from durablefuture_trio.engine.commands import LAST_COMMANDS
from durablefuture_trio.ports.children import ReplayAnswer
from durablefuture_trio.ports.frames import (
    FRAME_VERSION,
    Activated,
    Blocked,
    Evict,
    Evicted,
    Hello,
    Loaded,
    Missing,
    Queried,
    Ready,
    SandboxUp,
)
from durablefuture_trio.supervisor._children import Child, ChildSpec, Ended
from durablefuture_trio.supervisor._deadlock_watch import ActivationWatch
from durablefuture_trio.supervisor.settings import SandboxSettings

if TYPE_CHECKING:
    from durablefuture_trio.supervisor._replay_pool import SandboxReplayPool

log = logging.getLogger("durablefuture_trio.supervisor.replay")

_MODULE = "durablefuture_trio.sandbox"
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
"""Signals that somebody else sends: an operator, or the kernel that is out of memory."""

_STACK_WAIT_S = 1.0

OnAnswer: TypeAlias = Callable[[ReplayAnswer], None]


class Question:
    """A frame that a child has been sent or is to be sent, in the order of sending."""

    __slots__ = ("exchange", "final", "is_load", "on_answer", "run_id")

    def __init__(self, exchange: int, run_id: str, on_answer: OnAnswer | None, *, is_load: bool, final: bool) -> None:
        self.exchange = exchange
        self.run_id = run_id
        self.on_answer = on_answer
        self.is_load = is_load
        self.final = final  # answered; chunks of a history are not, but for the last


class ReplaySlot:
    """The place of one replay process (a `_keeper.ChildSlot`).

    Args:
        name: of the process.
        hash_seed: the order of sets of strings follows from it.
    """

    exit_grace_s = 0.0  # a replay process has nothing to tidy up

    def __init__(
        self,
        pool: SandboxReplayPool,
        settings: SandboxSettings,
        hello: Hello,
        start_timeout_s: float,
        name: str,
        hash_seed: str,
    ) -> None:
        self.name = name
        self._hash_seed = hash_seed
        self.child: Child | None = None
        self._pool = pool
        self._settings = settings
        self._hello = hello
        self._start_timeout_s = start_timeout_s
        self._questions: deque[Question] = deque()
        self._unsent: list[msgspec.Struct] = []
        self._owed = 0
        self._answered = 0
        self._watch: ActivationWatch | None = None
        self._deadlock: str | None = None

    @property
    def idle(self) -> bool:
        return not self._questions

    @property
    def owes(self) -> bool:
        """Whether an answer is awaited."""
        return self._owed > 0

    def next_child(self) -> ChildSpec:
        self._close_watch()
        self._watch = ActivationWatch()
        settings: dict[str, str | int | float | bool | None] = {
            "memory_limit_mb": self._settings.memory_limit_mb,
            "cached_workflows": self._settings.cached_workflows,
            "activity_fd": self._watch.page_fd,
            "stack_fd": self._watch.stack_fd,
        }
        return ChildSpec(
            module=_MODULE,
            hello=msgspec.structs.replace(
                self._hello, version=FRAME_VERSION, name=self.name, settings={**self._hello.settings, **settings}
            ),
            up_type=SandboxUp,
            start_timeout_s=self._start_timeout_s,
            environment={"PYTHONHASHSEED": self._hash_seed},
            inherited_fds=(self._watch.page_fd, self._watch.stack_fd),
        )

    def ask(self, question: Question, frame: msgspec.Struct) -> None:
        if self.child is not None:
            self.child.send(frame)
        else:
            self._unsent.append(frame)
        self._questions.append(question)
        self._owed += question.final

    def forget(self, run_id: str) -> None:
        for question in self._questions:
            if question.run_id == run_id:
                question.on_answer = None
        if self.child is not None:
            self.child.send(Evict(run_id=run_id))
        else:
            self._unsent.append(Evict(run_id=run_id))

    def child_ready(self, child: Child, ready: Ready) -> None:
        self._pool.child_ready(ready)
        self.child = child
        unsent, self._unsent = self._unsent, []
        for frame in unsent:
            child.send(frame)

    def handle(self, frame: SandboxUp) -> None:
        match frame:
            case Activated() | Loaded():
                self._pool.run_answered(frame.run_id)
                if isinstance(frame, Activated) and any(
                    isinstance(command, LAST_COMMANDS) for command in frame.commands
                ):
                    self._pool.run_gone(self, frame.run_id)  # a child drops a run that has come to its end
                self._answer(frame)
            case Queried():
                self._answer(frame)
            case Blocked() | Missing():
                self._pool.run_gone(self, frame.run_id)
                self._answer(frame)
            case Evicted():
                self._pool.run_gone(self, frame.run_id)
            case _:
                log.error("%s sent an unexpected %s", self.name, type(frame).__name__)

    def _answer(self, frame: ReplayAnswer) -> None:
        # Children answer in order, so whatever was asked before this question has been dealt with.
        questions = self._questions
        while questions and questions[0].exchange <= frame.exchange:
            question = questions.popleft()
            self._owed -= question.final
            self._answered += 1
            if question.exchange == frame.exchange and question.on_answer is not None:
                question.on_answer(frame)

    def child_ended(self, child: Child, ended: Ended) -> None:
        busy_with = self._close_watch()
        if not ended.was_ready:
            return  # nothing was sent to it: the next one gets it
        self.child = None
        questions, self._questions = self._questions, deque()
        self._owed = 0
        verdict = self._verdict(questions, busy_with, child, ended) if questions else None
        self._deadlock = None
        self._pool.slot_died(self, questions, verdict)

    def _verdict(
        self, questions: deque[Question], busy_with: int | None, child: Child, ended: Ended
    ) -> ReplayAnswer | None:
        """What the run that was being stepped is told; None: nobody is blamed, all are replayed elsewhere."""
        question = _find(questions, busy_with)
        if self._deadlock is not None:
            limit_s = self._limit_s(question)
            self._pool.run_deadlocked(question.run_id)
            return Blocked(
                exchange=question.exchange,
                run_id=question.run_id,
                kind="deadlock",
                message=f"Workflow code did not come to an await for more than {limit_s:g} s of CPU "
                "(or much longer on the clock), and its process was killed. The stack shows where it was: move long "
                "computations and blocking calls into activities.",
                stack=self._deadlock,
            )
        doing = "replayed the history of this run" if question.is_load else "ran this workflow"
        certain = question.exchange == busy_with and ended.status.signal_name not in _FROM_OUTSIDE
        if not certain and self._pool.excused(question.run_id):
            log.warning("%s %s while it %s, %s", self.name, ended.status, doing, question.run_id)
            return None
        return Blocked(
            exchange=question.exchange,
            run_id=question.run_id,
            kind="crashed",
            message=f"The replay process (pid {child.pid}) {ended.status} while it {doing}. Nothing is lost; the run "
            "is tried again later. Look for native extensions called by workflow code, or raise "
            "[sandbox] memory_limit_mb.",
        )

    # --- the watch ---

    def _limit_s(self, question: Question) -> float:
        # A run that is tried again after a deadlock holds all others of the process up for as long as it is watched.
        is_patient = question.is_load and not self._pool.is_deadlocked(question.run_id)
        return self._settings.replay_timeout if is_patient else self._settings.activation_timeout

    def look(self, interval_s: float) -> bool:
        """Whether the child is busy with one activation for too long."""
        if self._watch is None or self.child is None:
            return False
        if not self._owed:
            self._watch.rest()
            return False
        state = self._watch.read()
        limit_s = self._limit_s(_find(self._questions, state.exchange if state.busy else None))
        return self._watch.overdue(state, self._answered, limit_s, now=time.monotonic(), interval_s=interval_s)

    async def kill_deadlocked(self) -> None:
        """Have the child write its stack, then kill it; unless it goes on after all."""
        child, watch = self.child, self._watch
        if child is None or watch is None:
            return
        state = watch.read()
        before = (state.counter, self._answered)
        _have_stack_written(child, state.pid)
        stack = ""
        with trio.move_on_after(_STACK_WAIT_S):
            while self.child is child and (not stack or stack != watch.stack()):
                stack = watch.stack()
                await trio.sleep(0.02)
        if self.child is child and before == (watch.read().counter, self._answered):
            self._deadlock = stack
            log.error("%s (pid %d) is killed: an activation does not end\n%s", self.name, child.pid, stack)
            child.kill()
            watch.rest()

    def _close_watch(self) -> int | None:
        """Returns the exchange of the question the child was busy with, if it was with any."""
        if self._watch is None:
            return None
        state = self._watch.read()
        self._watch.close()
        self._watch = None
        return state.exchange if state.busy else None


def _have_stack_written(child: Child, pid: int) -> None:
    """Signal the process that is busy: the child, or a fork of it that lasts as long as what it is busy with."""
    if pid in (0, child.pid):
        child.signal(signal.SIGUSR1)
        return
    try:
        os.kill(pid, signal.SIGUSR1)
    except ProcessLookupError:
        log.debug("process %d of %s was gone already", pid, child.name)


def _find(questions: deque[Question], exchange: int | None) -> Question:
    """The question of that exchange; without it the oldest: children answer in order, though perhaps late."""
    return next((question for question in questions if question.exchange == exchange), questions[0])
