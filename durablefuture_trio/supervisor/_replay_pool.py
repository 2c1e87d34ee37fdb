"""The pool of replay processes: each run is pinned to one, and every question gets an answer, whatever dies."""

from __future__ import annotations

import logging
from collections import deque
from zlib import crc32

import msgspec
import trio

from durablefuture_trio.history.events import Stimulus
from durablefuture_trio.ports.children import ReplayAnswer
from durablefuture_trio.ports.frames import (
    Activate,
    Hello,
    LoadRun,
    Missing,
    Query,
    Ready,
    ValidateUpdate,
)
from durablefuture_trio.supervisor._replay_slot import OnAnswer, Question, ReplaySlot
from durablefuture_trio.supervisor.settings import SandboxSettings

log = logging.getLogger("durablefuture_trio.supervisor.replay")

_LOOKS_PER_LIMIT = 4
_IDLE_LOOKS = 20
_MAX_SUSPECTS = 1000

HASH_SEED = "0"
"""The order of sets of strings has to be the same in every process there ever is that runs workflows."""


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
        role: what the processes are called.
        hash_seed: their ``PYTHONHASHSEED``.
    """

    def __init__(
        self,
        settings: SandboxSettings,
        hello: Hello,
        start_timeout_s: float,
        *,
        role: str = "replay",
        hash_seed: str = HASH_SEED,
    ) -> None:
        self._settings = settings
        self.slots = [
            ReplaySlot(self, settings, hello, start_timeout_s, f"{hello.name}/{role}-{index}", hash_seed)
            for index in range(settings.processes)
        ]
        self._where: dict[str, ReplaySlot] = {}
        self._loading: dict[str, _Load] = {}
        self._suspects: dict[str, int] = {}
        self._deadlocked: dict[str, None] = {}
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
            Question(self._exchange, run_id, on_answer, is_load=False, final=True),
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
        patches: tuple[str, ...] = (),
        keep: bool = False,
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
            Question(self._exchange, run_id, on_answer, is_load=True, final=last),
            LoadRun(
                exchange=self._exchange,
                run_id=run_id,
                commits=commits,
                first=first,
                last=last,
                patches=patches,
                keep=keep,
            ),
        )
        self._where[run_id] = load.slot
        self._watch_wanted.set()

    def ask(self, question: Query | ValidateUpdate, on_answer: OnAnswer) -> None:
        """Ask a run something that does not change it; `on_answer` gets Queried, Missing or Blocked."""
        slot = self._slot_of(question.run_id)
        self._exchange += 1
        slot.ask(
            Question(self._exchange, question.run_id, on_answer, is_load=False, final=True),
            msgspec.structs.replace(question, exchange=self._exchange),
        )
        self._where[question.run_id] = slot
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
        if self._deadlocked:
            self._deadlocked.pop(run_id, None)

    def run_deadlocked(self, run_id: str) -> None:
        """Remember that an activation of this run did not end."""
        while len(self._deadlocked) >= _MAX_SUSPECTS:
            self._deadlocked.pop(next(iter(self._deadlocked)))
        self._deadlocked[run_id] = None

    def is_deadlocked(self, run_id: str) -> bool:
        """Whether an activation of this run did not end, and none has since."""
        return run_id in self._deadlocked

    def slot_died(self, slot: ReplaySlot, questions: deque[Question], verdict_on_first: ReplayAnswer | None) -> None:
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
        """Whether a death is excused that may not be the run's fault (a signal from outside, or the page does not say
        that it was being stepped): the first one in a row is, the second convicts the run."""
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
