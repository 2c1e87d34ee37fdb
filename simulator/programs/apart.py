"""Programs without durable execution: the same interpreter on plain Trio, where nothing is recorded or lost, attempts
are made on the spot, and children run beside their parents."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, cast
from uuid import UUID

import trio

from durablefuture_trio import codec
from durablefuture_trio.authoring import WorkflowInfo
from durablefuture_trio.authoring._children import ChildCall, ChildStart
from durablefuture_trio.authoring._futures import DurableCall
from durablefuture_trio.authoring._runtime import WorkflowRuntime, current_run
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.retry import backoff_s
from durablefuture_trio.errors import ActivityError, ApplicationError, ChildWorkflowError, DurableFutureError
from durablefuture_trio.history.events import FailureReason
from durablefuture_trio.history.options import ActivityOptionsRecord
from durablefuture_trio.sandbox._endings import as_failure, continuation_in, only_cancelled
from simulator.programs.behaviours import ACTIVITIES, AttemptPlan, plan_of
from simulator.programs.desk import Carried, Desk
from simulator.programs.nodes import Interpreter, Node

MakeInterpreter = Callable[[Desk], Interpreter]


async def run_apart(make: MakeInterpreter, tree: Node, value: int) -> int:
    """Run a program to the end of its last chapter; raises what it raises.

    Args:
        make: an interpreter for each run.
    """
    before = current_run.get()
    desk = Desk("outside")
    try:
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    run = _Outside(make, nursery)
                    # A program needs calls, time and chance; the rest of what a run offers stays away.
                    current_run.set(cast("WorkflowRuntime", run))
                    try:
                        result = await make(desk).run(tree, value)
                    finally:
                        run.end_calls()
                return result
            except BaseException as error:
                wish = continuation_in(error)
                if wish is None:
                    raise
            tree, carried = codec.decode_arguments(wish.arguments, (Node, Carried))
            value, desk = carried.value, Desk("outside")
            desk.go_on_from(carried.seen)
    finally:
        current_run.set(before)


class _Call(DurableCall):
    """A call that goes on by itself, as a task."""

    __slots__ = ("cancelled", "scope")

    def __init__(self, number: int, cancelled: DurableFutureError) -> None:
        super().__init__(number)
        self.cancelled = cancelled
        self.scope = trio.CancelScope(shield=True)  # the run owns it, whoever is cancelled

    def cancel(self) -> None:
        self.scope.cancel()

    def wake(self, task: trio.lowlevel.Task) -> None:
        trio.lowlevel.reschedule(task)


class _ChildCall(_Call, ChildCall):
    __slots__ = ("run_id", "start", "workflow_id")


class _Outside:
    """What a run offers to the code running in it."""

    definition = "further"
    cancel_reason = None
    history_patches: frozenset[str] = frozenset()

    def __init__(self, make: MakeInterpreter, nursery: trio.Nursery) -> None:
        self._make = make
        self._nursery = nursery
        self._random = Random(0)
        self._made: list[_Call] = []
        self._settled = 0
        self._never: list[object] = []
        self.info = WorkflowInfo(workflow_id="outside", run_id="outside", workflow="program", started_at=0.0)

    def now(self) -> float:
        return trio.current_time()

    def random(self) -> Random:
        return self._random

    def uuid4(self) -> UUID:
        return UUID(int=self._random.getrandbits(128), version=4)

    def replaying(self) -> bool:
        return False

    # --- calls ---

    async def call_activity(
        self, name: str, arguments: tuple[Any, ...], options: ActivityOptionsRecord, result_type: Any
    ) -> Any:
        definition = ACTIVITIES[name]
        decoded = codec.decode_arguments(codec.encode_arguments(arguments), definition.parameter_hints)
        policy = options.retry_policy
        deadline = trio.current_time() + (options.schedule_to_close_timeout or float("inf"))
        failed = 0
        while True:
            ended = await _attempt(plan_of(name, decoded, failed), options)
            if ended is None:
                return await definition.fn(*decoded)
            failed += 1
            reason, cause = ended
            pause = backoff_s(policy, failed)
            if (
                (isinstance(cause, ApplicationError) and cause.non_retryable)
                or failed == policy.maximum_attempts
                or trio.current_time() + pause >= deadline
            ):
                raise _activity_error(name, failed, reason, cause)
            await trio.sleep(pause)

    def submit_activity(
        self, name: str, arguments: tuple[Any, ...], options: ActivityOptionsRecord, result_type: Any
    ) -> DurableCall:
        call = _Call(len(self._made) + 1, _activity_error(name, 0, "cancelled", None))
        self._begin(call, self.call_activity(name, arguments, options, result_type))
        return call

    async def call_child(self, start: ChildStart) -> int:
        (tree,) = codec.decode_arguments(start.target.arguments, (Node,))
        try:
            return await run_apart(self._make, tree, 1)
        except BaseException as error:
            if only_cancelled(error):
                raise
            failure = as_failure(error)
            raise _child_error("failed", codec.exception_of(codec.failure_of(failure))) from None

    def submit_child(self, start: ChildStart) -> ChildCall:
        call = _ChildCall(len(self._made) + 1, _child_error("cancelled", None))
        call.workflow_id = start.workflow_id or "outside"
        call.run_id = "outside"
        call.start = _Call(call.number, call.cancelled)
        call.start.settle("outside", None, call.number)
        self._begin(call, self.call_child(start))
        return call

    def owns(self, call: DurableCall) -> bool:
        return True

    def end_calls(self) -> None:
        """The run has ended, and its calls with it."""
        for call in self._made:
            call.cancel()

    def _begin(self, call: _Call, work: Coroutine[Any, Any, Any]) -> None:
        async def task() -> None:
            value, error = None, call.cancelled
            with call.scope:
                try:
                    value, error = await work, None  # type: ignore[assignment]  # one of the two is there
                except (ActivityError, ChildWorkflowError) as failed:
                    error = failed
            self._settled += 1
            call.settle(value, error, self._settled)

        self._made.append(call)
        self._nursery.start_soon(task)

    # --- messages, other workflows, patches: none ever comes, none is known ---

    def add_handler(self, *_: Any, **__: Any) -> None:
        pass

    def add_validator(self, *_: Any) -> None:
        pass

    def hold_messages(self) -> None:
        pass

    def signal_channel(self, name: str, decode: Callable[[Payload], Any]) -> Any:
        send, receive = trio.open_memory_channel[Any](0)
        self._never.append(send)
        return receive

    async def wait_until(self, predicate: Callable[[], Any]) -> Any:
        if not (value := predicate()):
            await trio.sleep_forever()
        return value

    async def signal_external(self, *_: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def cancel_external(self, *_: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def result_external(self, *_: Any) -> Any:
        await trio.sleep_forever()

    def patched(self, patch: str) -> bool:
        return True

    def deprecate_patch(self, patch: str) -> None:
        pass


async def _attempt(plan: AttemptPlan, options: ActivityOptionsRecord) -> tuple[FailureReason, BaseException] | None:
    limit = options.start_to_close_timeout or float("inf")
    await trio.sleep(min(plan.duration_s, limit) if plan.how != "hang" else limit)
    if plan.how == "hang" or plan.duration_s >= limit:
        return "timed_out", TimeoutError(f"after {limit:g} s")
    match plan.how:
        case "crash":
            return "crashed", RuntimeError("the process was killed")
        case "raise":
            assert plan.error is not None
            return "error", plan.error
        case _:
            return None


def _activity_error(name: str, attempts: int, reason: str, cause: BaseException | None) -> ActivityError:
    return ActivityError(
        f"{name} {reason}", activity=name, activity_id=0, attempts=attempts, reason=reason, cause=cause
    )


def _child_error(reason: str, cause: BaseException | None) -> ChildWorkflowError:
    words = f"the child: {reason}"
    return ChildWorkflowError(words, workflow="program", workflow_id="outside", reason=reason, cause=cause)
