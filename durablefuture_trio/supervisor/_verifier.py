"""Paranoid mode: every finished commit is replayed once more, in other processes, and has to go the same way there.

A replay in a process that has run nothing before, with the same hash seed, must do what is stored: else the code
depends on something that is no part of its history. With another hash seed it may differ, as the seed is fixed; that is
told.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from functools import partial

import msgspec
import trio

from durablefuture_trio.engine.commands import Command, signature_of_command, values_of
from durablefuture_trio.engine.replay import describe
from durablefuture_trio.engine.run_records import Block
from durablefuture_trio.errors import HistoryError
from durablefuture_trio.history.commit import Commit, closing_events, encode_commit
from durablefuture_trio.history.events import EventClass, class_of
from durablefuture_trio.ports.broker import BrokerError
from durablefuture_trio.ports.children import ReplayAnswer, ReplayPool
from durablefuture_trio.ports.frames import Blocked, Loaded, Missing
from durablefuture_trio.protocol.loading import HistoryReader, NumberedCommit

logger = logging.getLogger("durablefuture_trio.verifier")

CONCURRENT = 2
"""While one history is replayed the next one is read. More would only fill memory: a pool is one process."""

MAX_WAITING = 10_000
MAX_REMEMBERED = 10_000
ATTEMPTS = 3
"""A replay whose process is killed from outside is repeated."""

DRAIN_S = 10.0
"""So long may a shard that is given up wait for what is still to be verified."""

_DIFFERENT = "a replay of this history in a fresh process went differently (paranoid mode)"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be replayed: commits `first_n` to `tip_n` of a workflow id, or their part of them if another run
    begins in the last one.

    Attributes:
        wake_at: the deadline for which the sandbox waits after it, in Unix seconds.
        unmatched: what the code asked for beyond what is stored.
        is_closed: the run has closed; nothing is compared but what is stored.
    """

    workflow_id: str
    run_id: str
    first_n: int
    tip_n: int
    patches: tuple[str, ...] = ()
    wake_at: float | None = None
    unmatched: tuple[Command, ...] = ()
    is_closed: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """What came of it. ``block``: how the replay differed; ``is_certain``: False when it could not be done."""

    block: Block | None = None
    is_certain: bool = True


class Verifiers:
    """The processes that verify for one supervisor, and what they have found so far.

    Args:
        same_seed: replays as the processes do that run workflows.
        other_seed: replays with another hash seed; None: nobody looks for that.
        code_hash: of the code that the processes run which run workflows.
    """

    def __init__(self, same_seed: ReplayPool, other_seed: ReplayPool | None, code_hash: Callable[[], str]) -> None:
        self.pools: tuple[ReplayPool, ...] = (same_seed,) if other_seed is None else (same_seed, other_seed)
        self.limiter = trio.CapacityLimiter(CONCURRENT)
        self.passed = 0
        self.doubted = 0
        self.warned = 0
        self.given_up = 0
        self._code_hash = code_hash
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()

    def statistics(self) -> dict[str, int]:
        """Histories that passed, differed, differed with the other hash seed, and could not be verified."""
        return {
            "passed": self.passed,
            "doubted": self.doubted,
            "warned": self.warned,
            "given_up": self.given_up,
        }

    def judge(self, target: Target, answers: list[ReplayAnswer]) -> Verdict:
        """Compare the answers of the pools with the target. Findings are counted; warnings are logged."""
        same, others = answers[0], answers[1:]
        if isinstance(same, Blocked):
            if reason := self._excuse(same, self.pools[0]):
                return self.give_up(target, reason)
            self.doubted += 1
            return Verdict(_block_of(same))
        if not isinstance(same, Loaded):
            return self.give_up(target, "its process was killed again and again")
        if (block := _difference(target, same)) is not None:
            self.doubted += 1
            return Verdict(block)
        self.passed += 1
        for pool, other in zip(self.pools[1:], others, strict=True):
            found = _difference(target, other) if isinstance(other, Loaded) else None
            if isinstance(other, Blocked) and not self._excuse(other, pool):
                found = _block_of(other)
            if found is not None:
                self._warn(target, found)
        return Verdict()

    def give_up(self, target: Target, reason: str) -> Verdict:
        """It cannot be verified; said once per run."""
        self.given_up += 1
        if self._is_new(target.run_id, "given up"):
            logger.warning("run %s of workflow %r is not verified: %s", target.run_id, target.workflow_id, reason)
        return Verdict(is_certain=False)

    def _excuse(self, blocked: Blocked, pool: ReplayPool) -> str:
        """Why a replay that did not come to its end says nothing about the run; empty: it does."""
        if blocked.kind in ("crashed", "deadlock"):
            return blocked.message
        if pool.code_hash != self._code_hash():
            return "the process that verifies has other code than those that run workflows: restart the supervisor"
        return ""

    def _warn(self, target: Target, found: Block) -> None:
        place = found.source or found.recorded or found.message
        if not self._is_new(target.run_id, place):
            return
        self.warned += 1
        logger.warning(
            "run %s of workflow %r would do something else if sets of strings had another order: recorded %s; produced "
            "%s%s. It goes on, as that order is the same in all replay processes; better sort what is iterated over",
            target.run_id,
            target.workflow_id,
            found.recorded or "nothing more",
            found.produced or "nothing more",
            f" at {found.source}" if found.source else "",
        )

    def _is_new(self, run_id: str, what: str) -> bool:
        if (run_id, what) in self._told:
            return False
        self._told[run_id, what] = None
        while len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)
        return True


class ShardVerifier:
    """What is to be verified of one shard: for each run its latest tip, one after the other.

    Args:
        on_doubt: called with what differed.
    """

    def __init__(self, verifiers: Verifiers, reader: HistoryReader, on_doubt: Callable[[Target, Block], None]) -> None:
        self._verifiers = verifiers
        self._reader = reader
        self._on_doubt = on_doubt
        self._waiting: OrderedDict[str, Target] = OrderedDict()
        self._checks: deque[tuple[Target, Callable[[Verdict], None]]] = deque()
        self._passed: OrderedDict[str, int] = OrderedDict()
        self._skipped = 0
        self._wanted = trio.Event()
        self._idle = trio.Event()
        self._idle.set()

    def verify(self, target: Target) -> None:
        """Verify it when its turn comes, or a later tip of the same run; never blocks."""
        if self._passed.get(target.run_id) == target.tip_n and not target.is_closed:
            return
        self._waiting[target.run_id] = target
        if len(self._waiting) > MAX_WAITING:
            run_id, _ = self._waiting.popitem(last=False)
            if self._skipped % MAX_WAITING == 0:
                logger.warning("run %s and others are not verified: more has to be than can be", run_id)
            self._skipped += 1
        self._want()

    def check(self, target: Target, on_verdict: Callable[[Verdict], None]) -> None:
        """Verify before a blocked run goes on; such come before all others."""
        self._checks.append((target, on_verdict))
        self._want()

    async def run(self) -> None:
        """Verify for ever."""
        while True:
            await self._wanted.wait()
            while self._checks or self._waiting:
                target, on_verdict = self._next()
                async with self._verifiers.limiter:
                    verdict = await self._verdict(target)
                on_verdict(verdict)
            self._wanted = trio.Event()
            self._idle.set()

    async def drain(self) -> None:
        """Wait for what is still to be verified, but not long."""
        with trio.move_on_after(DRAIN_S):
            await self._idle.wait()
            return
        logger.warning("%d runs are not verified to their end: no time is left", len(self._waiting) + 1)

    def _want(self) -> None:
        self._idle = trio.Event() if self._idle.is_set() else self._idle
        self._wanted.set()

    def _next(self) -> tuple[Target, Callable[[Verdict], None]]:
        if self._checks:
            return self._checks.popleft()
        _, target = self._waiting.popitem(last=False)
        return target, partial(self._verified, target)

    def _verified(self, target: Target, verdict: Verdict) -> None:
        if verdict.block is not None:
            self._on_doubt(target, verdict.block)
        elif verdict.is_certain and not target.is_closed:
            self._passed[target.run_id] = target.tip_n
            self._passed.move_to_end(target.run_id)
            while len(self._passed) > MAX_REMEMBERED:
                self._passed.popitem(last=False)
        else:
            self._passed.pop(target.run_id, None)

    async def _verdict(self, target: Target) -> Verdict:
        answers: list[ReplayAnswer] = []
        for _ in range(ATTEMPTS):
            try:
                answers = await self._answers(target)
            except HistoryError as error:
                return self._verifiers.give_up(target, error.message)
            if not isinstance(answers[0], Missing):
                break
        return self._verifiers.judge(target, answers)

    async def _answers(self, target: Target) -> list[ReplayAnswer]:
        pools = self._verifiers.pools
        answers: dict[int, ReplayAnswer] = {}
        done = trio.Event()

        def answered(index: int, answer: ReplayAnswer) -> None:
            answers[index] = answer
            if len(answers) == len(pools):
                done.set()

        try:
            async for bodies, first, last in self._chunks(target):
                for index, pool in enumerate(pools):
                    pool.load(
                        target.run_id,
                        bodies,
                        first=first,
                        last=last,
                        patches=target.patches,
                        on_answer=partial(answered, index) if last else None,
                    )
            await done.wait()
        finally:
            for pool in pools:
                pool.evict(target.run_id)
        return [answers[index] for index in range(len(pools))]

    async def _chunks(self, target: Target) -> AsyncIterator[tuple[tuple[bytes, ...], bool, bool]]:
        n = target.first_n
        while n <= target.tip_n:
            try:
                async for chunk in self._reader.commits(target.workflow_id, n, target.tip_n):
                    first, n = n == target.first_n, chunk[-1].n + 1
                    yield tuple(_body_for(target, item) for item in chunk), first, n > target.tip_n
            except BrokerError as error:
                logger.warning("reading the history of workflow %r: %r", target.workflow_id, error)
                await trio.sleep(1.0)


def _body_for(target: Target, item: NumberedCommit) -> bytes:
    """A commit as the run has it: its last events may be in the commit with which the next one begins."""
    commit = item.commit
    if commit.run_id == target.run_id:
        return item.body
    events = closing_events(commit)
    is_own_end = bool(events) and class_of(events[-1]) is EventClass.COMMAND
    return encode_commit(
        Commit(
            run_id=target.run_id,
            commit_id=commit.commit_id,
            first_n=target.first_n,
            finished=is_own_end,  # a run that was ended from outside may have stimuli that nobody activated
            consumed=commit.consumed,
            code_hash=commit.code_hash,
            events=events,
        )
    )


def _difference(target: Target, loaded: Loaded) -> Block | None:
    """How the end of a replay differs from what the process says that runs the workflow; None: not at all."""
    if target.is_closed:
        return None
    here, there = list(target.unmatched), list(loaded.unmatched)
    for place in range(max(len(here), len(there))):
        ours, theirs = (_shown(commands[place : place + 1]) for commands in (here, there))
        if ours != theirs:
            source = there[place].source if place < len(there) else here[place].source
            return _found(ours, theirs, source)
    if target.wake_at != loaded.wake_at:
        return _found(_timer(target.wake_at), _timer(loaded.wake_at), "")
    return None


def _found(recorded: str, produced: str, source: str) -> Block:
    at = f" at {source}" if source else ""
    return Block(
        kind="nondeterminism",
        message=f"{_DIFFERENT}:\n- {recorded or 'nothing more'}\n+ {produced or 'nothing more'}{at}\nThe workflow code "
        "depends on something that is not in the history. The run waits, nothing is lost.",
        recorded=recorded,
        produced=produced,
        source=source,
    )


def _shown(commands: list[Command]) -> str:
    if not commands:
        return ""
    values = values_of(commands[0])
    words = describe(signature_of_command(commands[0]))
    return words if values is None else f"{words} with {values.data.decode('utf-8', 'replace')}"


def _timer(wake_at: float | None) -> str:
    return "no timer" if wake_at is None else f"a timer for {wake_at!r}"


def _block_of(blocked: Blocked) -> Block:
    return Block(
        kind=blocked.kind,
        message=f"{_DIFFERENT}: {blocked.message}",
        recorded=blocked.recorded,
        produced=blocked.produced,
        source=blocked.source,
        stack=blocked.stack,
    )
