"""The pool of replay processes: each run is pinned to one, and every question gets an answer, whatever dies."""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable
from zlib import crc32

import msgspec
import trio

from durablefuture_trio.history.events import Stimulus
from durablefuture_trio.ports.children import ReplayAnswer
from durablefuture_trio.ports.frames import (
    FRAME_VERSION,
    Activate,
    Activated,
    Blocked,
    Evict,
    Evicted,
    Hello,
    Loaded,
    LoadRun,
    Missing,
    Ready,
    SandboxUp,
)
from durablefuture_trio.supervisor._children import Child, ChildSpec, Ended
from durablefuture_trio.supervisor._deadlock_watch import ActivationWatch
from durablefuture_trio.supervisor.settings import SandboxSettings

log = logging.getLogger("durablefuture_trio.supervisor.replay")

_MODULE = "durablefuture_trio.sandbox"
_HASH_SEED = "0"
"""The order of sets of strings has to be the same in every replay process there ever is."""

_LOOKS_PER_LIMIT = 4
_IDLE_LOOKS = 20
_STACK_WAIT_S = 1.0
_MAX_SUSPECTS = 1000

OnAnswer = Callable[[ReplayAnswer], None]


class _Question:
    """A frame that a child has been sent or is to be sent, in the order of sending."""

    __slots__ = ("exchange", "final", "is_load", "on_answer", "run_id")

    def __init__(self, exchange: int, run_id: str, on_answer: OnAnswer | None, *, is_load: bool, final: bool) -> None:
        self.exchange = exchange
        self.run_id = run_id
        self.on_answer = on_answer
        self.is_load = is_load
        self.final = final  # answered; chunks of a history are not, but for the last


class _Load:
    """A history that is being handed over in chunks."""

    __slots__ = ("slot", "verdict")

    def __init__(self, slot: ReplaySlot) -> None:
        self.slot = slot
        self.verdict: ReplayAnswer | None = None  # the answer, when the child died before the last chunk


class SandboxReplayPool:
    """Implements `ports.children.ReplayPool` with `[sandbox] processes` child processes.

    Args:
        settings: ``[sandbox]``.
        hello: the first frame for every child; its name and settings are put in here.
        start_timeout_s: seconds a child may take to get ready.
    """

    def __init__(self, settings: SandboxSettings, hello: Hello, start_timeout_s: float) -> None:
        self._settings = settings
        self.slots = [ReplaySlot(self, settings, hello, start_timeout_s, i) for i in range(settings.processes)]
        self._where: dict[str, ReplaySlot] = {}
        self._loading: dict[str, _Load] = {}
        self._suspects: dict[str, int] = {}
        self._exchange = 0
        self._code_hash = ""
        self._workflows: frozenset[str] = frozenset()
        self._watch_wanted = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    # --- ports.children.ReplayPool ---

    @property
    def code_hash(self) -> str:
        """Digest of the code that the process started last runs."""
        return self._code_hash

    @property
    def workflows(self) -> frozenset[str]:
        """Names of the registered workflows."""
        return self._workflows

    def cached(self, run_id: str) -> bool:
        """Whether a process is believed to hold the run."""
        return run_id in self._where

    def activate(self, run_id: str, activation: int, stimulus: Stimulus, on_answer: OnAnswer) -> None:
        """Apply one stimulus; `on_answer` gets Activated, Blocked or Missing, later, never from within this call."""
        slot = self._slot_of(run_id)
        self._exchange += 1
        slot.ask(
            _Question(self._exchange, run_id, on_answer, is_load=False, final=True),
            Activate(exchange=self._exchange, run_id=run_id, activation=activation, stimulus=stimulus),
        )
        self._where[run_id] = slot
        self._watch_wanted.set()

    def load(
        self,
        run_id: str,
        commits: tuple[bytes, ...],
        *,
        first: bool,
        last: bool,
        on_answer: OnAnswer | None = None,
    ) -> None:
        """Replay a chunk of history; with the last chunk `on_answer` gets Loaded, Blocked or Missing."""
        if first:
            self._loading[run_id] = _Load(self._slot_of(run_id))
        load = self._loading.get(run_id)
        if load is None or load.verdict is not None:
            if last:
                self._loading.pop(run_id, None)
                verdict = load.verdict if load and load.verdict else Missing(exchange=0, run_id=run_id)
                if on_answer is not None:
                    self._token.run_sync_soon(on_answer, verdict)
            return
        if last:
            del self._loading[run_id]
        self._exchange += 1
        load.slot.ask(
            _Question(self._exchange, run_id, on_answer, is_load=True, final=last),
            LoadRun(exchange=self._exchange, run_id=run_id, commits=commits, first=first, last=last),
        )
        self._where[run_id] = load.slot
        self._watch_wanted.set()

    def evict(self, run_id: str) -> None:
        """Forget the run; answers still owed for it are not delivered any more."""
        self._loading.pop(run_id, None)
        slot = self._where.pop(run_id, None)
        if slot is not None:
            slot.forget(run_id)

    def backlog_bytes(self, run_id: str) -> int:
        """Bytes on their way to the process of this run: whoever loads a long history waits while it is large."""
        child = self._slot_of(run_id).child
        return child.backlog_bytes if child is not None else 0

    # --- for the slots ---

    def _slot_of(self, run_id: str) -> ReplaySlot:
        slot = self._where.get(run_id)
        if slot is not None:
            return slot
        home = crc32(run_id.encode()) % len(self.slots)
        for turn in range(len(self.slots)):
            slot = self.slots[(home + turn) % len(self.slots)]
            if slot.child is not None:
                return slot
        return self.slots[home]  # none is up: it waits for its own

    def child_ready(self, ready: Ready) -> None:
        if self._code_hash not in ("", ready.code_hash):
            log.info("the workflow code has changed: %s is now %s", self._code_hash, ready.code_hash)
        self._code_hash = ready.code_hash
        self._workflows = frozenset(ready.workflows)

    def run_gone(self, slot: ReplaySlot, run_id: str) -> None:
        """The child of `slot` does not hold the run (any more)."""
        if self._where.get(run_id) is slot:
            del self._where[run_id]

    def run_answered(self, run_id: str) -> None:
        if self._suspects:
            self._suspects.pop(run_id, None)

    def slot_died(self, slot: ReplaySlot, questions: deque[_Question], verdict_on_first: ReplayAnswer | None) -> None:
        """Give the answers a dead child owed: its verdict to the run it was busy with, Missing to all others."""
        for run_id in [run_id for run_id, where in self._where.items() if where is slot]:
            del self._where[run_id]
        blamed = verdict_on_first.run_id if verdict_on_first is not None else None
        for run_id, load in self._loading.items():
            if load.slot is slot and load.verdict is None:
                load.verdict = verdict_on_first if run_id == blamed else Missing(exchange=0, run_id=run_id)
        for question in questions:
            if question.on_answer is not None and question.final:
                missing = Missing(exchange=question.exchange, run_id=question.run_id)
                question.on_answer(
                    verdict_on_first if verdict_on_first is not None and question.run_id == blamed else missing
                )

    def excused(self, run_id: str) -> bool:
        """Whether a death from outside is excused: the first one in a row is, the second convicts the run."""
        deaths = self._suspects.get(run_id, 0) + 1
        if deaths > 1:
            self._suspects.pop(run_id)
            return False
        while len(self._suspects) >= _MAX_SUSPECTS:
            self._suspects.pop(next(iter(self._suspects)))
        self._suspects[run_id] = deaths
        return True

    # --- the watch ---

    async def watch_deadlocks(self) -> None:
        """Look after activations that do not end, for ever. Looks only while something is owed, or was lately."""
        interval_s = min(0.5, max(0.02, self._settings.activation_timeout / _LOOKS_PER_LIMIT))
        while True:
            await self._watch_wanted.wait()
            idle_looks = 0
            while idle_looks < _IDLE_LOOKS:
                await trio.sleep(interval_s)
                idle_looks += 1
                for slot in self.slots:
                    if slot.look(interval_s):
                        await slot.kill_deadlocked()
                    if slot.owes:
                        idle_looks = 0
            self._watch_wanted = trio.Event()
            if any(slot.owes for slot in self.slots):  # asked since the last look
                self._watch_wanted.set()


class ReplaySlot:
    """The place of one replay process (a `_keeper.ChildSlot`)."""

    exit_grace_s = 0.0  # a replay process has nothing to tidy up

    def __init__(
        self, pool: SandboxReplayPool, settings: SandboxSettings, hello: Hello, start_timeout_s: float, index: int
    ) -> None:
        self.name = f"{hello.name}/replay-{index}"
        self.child: Child | None = None
        self._pool = pool
        self._settings = settings
        self._hello = hello
        self._start_timeout_s = start_timeout_s
        self._questions: deque[_Question] = deque()
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
            environment={"PYTHONHASHSEED": _HASH_SEED},
            inherited_fds=(self._watch.page_fd, self._watch.stack_fd),
        )

    def ask(self, question: _Question, frame: msgspec.Struct) -> None:
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
        self._close_watch()
        if not ended.was_ready:
            return  # nothing was sent to it: the next one gets it
        self.child = None
        questions, self._questions = self._questions, deque()
        self._owed = 0
        verdict = self._verdict(questions[0], child, ended) if questions else None
        self._deadlock = None
        self._pool.slot_died(self, questions, verdict)

    def _verdict(self, question: _Question, child: Child, ended: Ended) -> ReplayAnswer | None:
        """What the run that was being stepped is told; None: replay it elsewhere."""
        doing = "replayed the history of this run" if question.is_load else "ran this workflow"
        if self._deadlock is not None:
            return Blocked(
                exchange=question.exchange,
                run_id=question.run_id,
                kind="deadlock",
                message=f"Workflow code did not come to an await for more than {self._limit_s(question):g} s of CPU "
                "(or much longer on the clock), and its process was killed. The stack shows where it was: move long "
                "computations and blocking calls into activities.",
                stack=self._deadlock,
            )
        if ended.status.signal_name in _FROM_OUTSIDE and self._pool.excused(question.run_id):
            log.warning("%s was killed from outside while it %s %s", self.name, doing, question.run_id)
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

    def _limit_s(self, question: _Question) -> float:
        return self._settings.replay_timeout if question.is_load else self._settings.activation_timeout

    def look(self, interval_s: float) -> bool:
        """Whether the child is busy with one activation for too long."""
        if self._watch is None or self.child is None:
            return False
        if not self._owed:
            self._watch.rest()
            return False
        limit_s = self._limit_s(self._questions[0])
        return self._watch.overdue(self.child.pid, self._answered, limit_s, time.monotonic(), interval_s)

    async def kill_deadlocked(self) -> None:
        """Have the child write its stack, then kill it; unless it goes on after all."""
        child, watch, answered = self.child, self._watch, self._answered
        if child is None or watch is None:
            return
        child.signal(signal.SIGUSR1)
        stack = ""
        with trio.move_on_after(_STACK_WAIT_S):
            while self.child is child and (not stack or stack != watch.stack()):
                stack = watch.stack()
                await trio.sleep(0.02)
        if self.child is child and self._answered == answered:
            self._deadlock = stack
            log.error("%s (pid %d) is killed: an activation does not end\n%s", self.name, child.pid, stack)
            child.kill()
            watch.rest()

    def _close_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None


_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
"""Signals that somebody else sends: an operator, or the kernel that is out of memory."""
