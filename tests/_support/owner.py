"""The owner of a run as a value: notifications in, outputs out, and a history in between that the test can hold up."""

from __future__ import annotations

from itertools import count
from typing import Any, TypeVar

from durablefuture_trio import codec
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine import outputs as out
from durablefuture_trio.engine.attempts import ActivityKey, AttemptCompleted, AttemptFailed
from durablefuture_trio.engine.commands import (
    CancelActivity,
    Command,
    CompleteWorkflow,
    ScheduleActivity,
)
from durablefuture_trio.engine.requests import (
    Answer,
    AttemptReport,
    ConflictPolicy,
    Envelope,
    Inbound,
    ReusePolicy,
    StartRequest,
    TerminateRequest,
    TimerFire,
)
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.engine.run_records import Block, OwnerLimits
from durablefuture_trio.history.commit import Commit, decode_commit
from durablefuture_trio.history.events import Event, FailureReason
from durablefuture_trio.history.options import ActivityOptionsRecord, RetryPolicy
from durablefuture_trio.history.state import RunState, fold

NO_ARGUMENTS = codec.encode_arguments(())
T = TypeVar("T", bound=out.Output)


def schedule(call: int, name: str = "act", **options: Any) -> ScheduleActivity:
    """Workflow code calls an activity."""
    return ScheduleActivity(call=call, name=name, arguments=NO_ARGUMENTS, options=ActivityOptionsRecord(**options))


def cancel(call: int) -> CancelActivity:
    """Workflow code no longer wants a result."""
    return CancelActivity(call=call)


def complete(result: object = None) -> CompleteWorkflow:
    """The workflow function returns."""
    return CompleteWorkflow(result=codec.encode_value(result))


class History:
    """The commits of one id, shared by its owners."""

    def __init__(self) -> None:
        self.bodies: dict[int, bytes] = {}

    @property
    def tip_n(self) -> int:
        return max(self.bodies, default=0)

    @property
    def commits(self) -> list[Commit]:
        return [decode_commit(self.bodies[n]) for n in sorted(self.bodies)]

    @property
    def events(self) -> list[Event]:
        return [event for commit in self.commits for event in commit.events]

    @property
    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    def state(self) -> RunState | None:
        """The latest run, folded."""
        if not self.bodies:
            return None
        first_n = decode_commit(self.bodies[self.tip_n]).first_n
        return fold([(n, decode_commit(self.bodies[n])) for n in sorted(self.bodies) if n >= first_n])


class Driver:
    """Plays everybody around one `RunOwner`.

    Attributes:
        held: kinds of outputs that are not answered until `answer` is called; all others are at once.
        cached: the runs that the sandbox holds.
        keeps: whether it holds a run beyond its activation.
        asked: outputs for the sandbox and for activity pools, oldest first; taken with `pop`.
        acked: inbox sequences, in the order of their acknowledgement.
    """

    def __init__(
        self,
        history: History | None = None,
        *,
        owner_type: type[RunOwner] = RunOwner,
        assume_fresh: bool = False,
        armed: dict[int, float] | None = None,
        commit_bytes: int = 1_000_000,
        now: float = 1000.0,
    ) -> None:
        self.history = History() if history is None else history
        self.now = now
        self.held: set[type[out.Output]] = set()
        self.cached: set[str] = set()
        self.keeps = True
        self.asked: list[out.Output] = []
        self.log: list[out.Output] = []
        self.acked: list[object] = []
        self.armed: dict[int, float] = {}
        self.neutralised: list[int] = []
        self.wake_at: float | None = None
        self._seq = count(100)
        self._ids = count(1)
        self._pumping = False
        self.owner = owner_type(
            "w",
            self._put,
            limits=OwnerLimits(commit_bytes=commit_bytes, payload_bytes=commit_bytes // 2),
            new_id=lambda: f"id{next(self._ids)}-{id(self):x}",
            code_hash=lambda: "hash",
            is_cached=self.cached.__contains__,
            armed={} if armed is None else armed,
            may_assume_fresh=assume_fresh,
        )

    # --- outputs ------------------------------------------------------------------------------------------------------

    def _put(self, output: out.Output) -> None:
        self.log.append(output)
        self.asked.append(output)

    def _pump(self) -> None:
        """Answer what nobody holds up."""
        while True:
            output = next((item for item in self.asked if self._is_automatic(item)), None)
            if output is None:
                return
            self.asked.remove(output)
            self._carry_out(output)

    def _is_automatic(self, output: out.Output) -> bool:
        by_hand = (
            out.Activate,
            out.Replay,
            out.Ask,
            out.Send,
            out.Dispatch,
            out.CancelAttempt,
            out.Reply,
            out.Closed,
            out.Report,
        )
        return not isinstance(output, by_hand) and type(output) not in self.held

    def _carry_out(self, output: out.Output) -> None:
        match output:
            case out.Load():
                self.owner.loaded(self.history.state(), self.now)
            case out.Confirm(tip_n=tip_n):
                self.owner.confirmed(self.history.tip_n == tip_n, self.now)
            case out.Publish(n=n, body=body):
                if n in self.history.bodies and self.history.bodies[n] != body:
                    self.owner.commit_lost(self.now)
                else:
                    self.history.bodies[n] = body
                    self.owner.committed(self.now)
            case out.Project(status_key=key):
                self.owner.projected(key, 1, self.now)
            case out.Arm(n=n, due=due):
                self.armed[n] = due
                self.owner.armed_at(n, due, self.now)
            case out.Neutralise(n=n):
                self.armed.pop(n, None)
                self.neutralised.append(n)
            case out.Ack(handle=handle):
                self.acked.append(handle)
            case out.Evict(run_id=run_id):
                self.cached.discard(run_id)
            case out.WakeAt(when=when):
                self.wake_at = when
            case _:
                return

    def pop(self, kind: type[T]) -> T:
        """Take the oldest output of a kind that nobody has answered."""
        for output in self.asked:
            if isinstance(output, kind):
                self.asked.remove(output)
                return output
        raise AssertionError(f"no {kind.__name__} among {self.asked}")

    def asks(self, kind: type[out.Output]) -> bool:
        """Whether such an output is unanswered."""
        return any(isinstance(output, kind) for output in self.asked)

    def answer(self, *kinds: type[out.Output]) -> None:
        """Hold these kinds up no longer."""
        self.held.difference_update(kinds)
        self._pump()

    @property
    def answers(self) -> list[Answer]:
        """What clients were told so far."""
        return [item.answer for item in self.log if isinstance(item, out.Reply)]

    @property
    def dispatched(self) -> list[tuple[int, int]]:
        """(activity, attempt) of everything ever dispatched."""
        keys = [item.attempt.key for item in self.log if isinstance(item, out.Dispatch)]
        return [(key.activity_id, key.attempt) for key in keys]

    @property
    def kinds(self) -> list[str]:
        return self.history.kinds

    @property
    def state(self) -> RunState:
        assert self.owner.state is not None
        return self.owner.state

    # --- notifications ------------------------------------------------------------------------------------------------

    def put(self, envelope: Envelope, *, seq: int | None = None, request: str = "") -> int:
        """Deliver an inbox message; its sequence is also its handle."""
        number = next(self._seq) if seq is None else seq
        message = Inbound(
            seq=number,
            time=self.now,
            envelope=envelope,
            handle=number,
            request_id=request,
            reply=f"to/{request}" if request else "",
        )
        self.owner.delivered(message, self.now)
        self._pump()
        return number

    def start(
        self,
        request: str = "q1",
        *,
        seq: int | None = None,
        conflict: ConflictPolicy = "fail",
        reuse: ReusePolicy = "allow",
        deadline: float | None = None,
    ) -> int:
        """A client asks for a run."""
        envelope = StartRequest(
            workflow_id="w",
            workflow="flow",
            arguments=NO_ARGUMENTS,
            conflict=conflict,
            reuse=reuse,
            execution_deadline=deadline,
        )
        return self.put(envelope, seq=seq, request=request)

    def terminate(self, request: str = "t1", *, seq: int | None = None, run_id: str = "") -> int:
        """A client asks to end the run."""
        return self.put(TerminateRequest(workflow_id="w", run_id=run_id), seq=seq, request=request)

    def fire(self, n: int, due: float, *, seq: int | None = None) -> int:
        """The schedule armed by commit `n` fires."""
        return self.put(TimerFire(workflow_id="w", run_id=self.run_id, n=n, due=due), seq=seq)

    @property
    def run_id(self) -> str:
        state = self.owner.state or self.history.state()
        assert state is not None
        return state.run_id

    def activated(self, *commands: Command, wake_at: float | None = None) -> out.Activate:
        """The sandbox has applied the oldest stimulus it was given."""
        question = self.pop(out.Activate)
        self._keep(question.run_id)
        self.owner.activated(question.token, commands, wake_at, self.now)
        self._pump()
        return question

    def replayed(self, *commands: Command, wake_at: float | None = None) -> None:
        """The sandbox has replayed the history."""
        question = self.pop(out.Replay)
        self._keep(question.run_id)
        self.owner.replayed(question.token, commands, wake_at, self.now)
        self._pump()

    def _keep(self, run_id: str) -> None:
        if self.keeps:
            self.cached.add(run_id)

    def drops(self) -> None:
        """From now on the sandbox holds no run beyond its activation."""
        self.keeps = False
        self.cached.clear()

    def missing(self) -> None:
        """The sandbox has dropped the run."""
        self.owner.missing(self.pop(out.Activate).token, self.now)
        self._pump()

    def is_blocked(self, kind: type[out.Activate | out.Replay] = out.Activate, words: str = "no such code") -> None:
        """The sandbox cannot go on with the run."""
        question: Any = self.pop(kind)
        self.owner.is_blocked(question.token, Block(kind="unknown_workflow", message=words), self.now)
        self._pump()

    def key(self, call: int, attempt: int = 1) -> ActivityKey:
        return ActivityKey(self.run_id, call, attempt)

    def succeeded(self, call: int, attempt: int = 1, *, result: object = "ok", elsewhere: bool = False) -> None:
        """An attempt has returned, here or elsewhere."""
        key = self.key(call, attempt)
        self._ended(AttemptCompleted(key=key, started_at=self.now, result=codec.encode_value(result)), elsewhere)

    def failed(self, call: int, attempt: int = 1, *, reason: FailureReason = "error", elsewhere: bool = False) -> None:
        """An attempt has failed, here or elsewhere."""
        failure = Failure(type="Boom", message="boom")
        key = self.key(call, attempt)
        self._ended(AttemptFailed(key=key, started_at=self.now, reason=reason, failure=failure), elsewhere)

    def _ended(self, outcome: AttemptCompleted | AttemptFailed, elsewhere: bool) -> None:
        if elsewhere:
            self.put(AttemptReport(workflow_id="w", worker="elsewhere/1", outcome=outcome))
            return
        self.owner.outcome(outcome, "here/1", self.now)
        self._pump()

    def later(self, seconds: float) -> None:
        """Time passes; the owner is woken if it has asked for that."""
        self.now += seconds
        while self.wake_at is not None and self.wake_at <= self.now:
            self.wake_at = None
            self.owner.wake(self.now)
            self._pump()

    # --- scenes -------------------------------------------------------------------------------------------------------

    def running(self, *commands: Command, wake_at: float | None = None, deadline: float | None = None) -> Driver:
        """A run that was started with request q1 and message 1, and has asked for `commands`."""
        self.start(seq=1, deadline=deadline)
        self.activated(*commands, wake_at=wake_at)
        return self

    def heir(self, **options: Any) -> Driver:
        """The owner after this one, over the same history; its sandbox is empty."""
        return Driver(self.history, now=self.now, **options)


FAST = RetryPolicy(initial_interval=10.0, backoff_coefficient=1.0)
"""Ten seconds between attempts, for ever."""
