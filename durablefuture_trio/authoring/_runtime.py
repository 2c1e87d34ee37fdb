"""Where a call from workflow code goes: the run that is being stepped.

The sandbox sets the context variable in the root task of a run; tasks inherit it, so a call finds its run wherever it
is made. Outside a workflow it is unset.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from random import Random
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import msgspec

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.history.options import ActivityOptionsRecord

if TYPE_CHECKING:
    from durablefuture_trio.authoring._children import ChildCall, ChildStart
    from durablefuture_trio.authoring._futures import DurableCall
    from durablefuture_trio.authoring._messages import MessageDefinition


class ContinueAsNewRequested(BaseException):
    """Raised by ``workflow.continue_as_new``: the run ends, and the workflow goes on in a fresh one.

    No `Exception`, so that code which handles failures does not take it for one. It may come out of any task of the run
    and in groups; a real failure beside it wins.

    Args:
        workflow: the registered name of what runs next.
        arguments: encoded when it was asked for.
    """

    def __init__(self, workflow: str, arguments: Payload) -> None:
        super().__init__(f"workflow {workflow} continues as new")
        self.workflow = workflow
        self.arguments = arguments
        run = current_run.get()
        if run is not None:
            # The arguments are made: a signal that is taken while this is on its way out would be in neither run.
            run.hold_messages()


class ParentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The run that started this one as its child."""

    workflow_id: str
    run_id: str


class WorkflowInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a run knows about itself.

    Attributes:
        workflow_id, run_id: its ids.
        workflow: the registered name.
        started_at: workflow time of its start, in Unix seconds.
        history_length: events recorded so far.
        attempt: which attempt of the workflow this is, from 1.
        continue_as_new_suggested: the history is close to its limit.
        parent: the run that started this one as its child; None: a client did.
        first_run_id: the run with which the chain began that this one continues; its own if it is the first.
        continued_from: the run that this one continues, as new or as its next attempt; None: it is the first.
        memo: what was given with the start.
    """

    workflow_id: str
    run_id: str
    workflow: str
    started_at: float
    history_length: int = 0
    attempt: int = 1
    continue_as_new_suggested: bool = False
    parent: ParentInfo | None = None
    first_run_id: str = ""
    continued_from: str | None = None
    memo: Any = None


class WorkflowRuntime(Protocol):
    """What a run offers to the code running in it."""

    @property
    def info(self) -> WorkflowInfo: ...

    def now(self) -> float:
        """Workflow time in Unix seconds."""
        ...

    def random(self) -> Random:
        """The run's deterministic source of randomness."""
        ...

    def uuid4(self) -> UUID:
        """A deterministic UUID."""
        ...

    def replaying(self) -> bool:
        """Whether recorded history is being repeated; for muting logs, never for decisions."""
        ...

    @property
    def history_patches(self) -> frozenset[str]:
        """The patches that the recorded history has markers of, while it is repeated."""
        ...

    def call_activity(
        self, name: str, arguments: tuple[Any, ...], options: ActivityOptionsRecord, result_type: Any
    ) -> Awaitable[Any]:
        """Schedule an activity and wait for its result (or raise `ActivityError`). `arguments` as bound, in the order
        of the activity's parameters; encoded at once, so that later changes to them do not matter."""
        ...

    @property
    def definition(self) -> object:
        """The workflow that runs."""
        ...

    def add_handler(
        self,
        message: MessageDefinition[..., Any],
        call: Callable[..., Any],
        *,
        is_async: bool,
        owner: object | None = None,
    ) -> None:
        """Handle messages of this kind and name from now on, beginning with those that wait.

        Args:
            call: takes the arguments; gives a coroutine if `is_async`.
            owner: the object whose method it is.
        """
        ...

    def add_validator(self, update: str, validator: Callable[..., Any]) -> None:
        """Ask `validator` before updates of this name are accepted."""
        ...

    def handlers_begun(self) -> Awaitable[None]:
        """Let the handlers of messages that were waiting make their first step."""
        ...

    def hold_messages(self) -> None:
        """The run is about to continue as new: what it has not taken is the next run's."""
        ...

    def signal_channel(self, name: str, decode: Callable[[Payload], Any]) -> Any:
        """A Trio receive channel of the values of a signal; `decode` makes them from the encoded arguments."""
        ...

    def wait_until(self, predicate: Callable[[], Any]) -> Awaitable[Any]:
        """Wait until `predicate` is truthy; gives what it returned."""
        ...

    @property
    def cancel_reason(self) -> str | None:
        """Why somebody wants the run to end; None: nobody does."""
        ...

    def last_result(self, hint: Any) -> Any:
        """What the last completed run of the chain returned; None: there is none."""
        ...

    def submit_activity(
        self, name: str, arguments: tuple[Any, ...], options: ActivityOptionsRecord, result_type: Any
    ) -> DurableCall:
        """Schedule an activity that goes on by itself."""
        ...

    def call_child(self, start: ChildStart) -> Awaitable[Any]:
        """Start a child workflow and wait for its result (or raise `ChildWorkflowError`)."""
        ...

    def submit_child(self, start: ChildStart) -> ChildCall:
        """Start a child workflow that goes on by itself."""
        ...

    def signal_external(self, workflow_id: str, run_id: str, name: str, arguments: Payload) -> Awaitable[None]:
        """Send a signal to another workflow. ``run_id`` empty: to whichever run of it is open."""
        ...

    def cancel_external(self, workflow_id: str, run_id: str, reason: str) -> Awaitable[None]:
        """Ask another workflow to end."""
        ...

    def result_external(self, workflow_id: str, run_id: str, result_type: Any) -> Awaitable[Any]:
        """Wait for the end of another workflow, and give its result. ``run_id`` empty: of its latest run."""
        ...

    def owns(self, call: DurableCall) -> bool:
        """Whether the call was made in this run."""
        ...

    def patched(self, patch: str) -> bool:
        """Whether the run takes the new side of a patch."""
        ...

    def deprecate_patch(self, patch: str) -> None:
        """The old side of a patch is gone from the code."""
        ...


current_run: ContextVar[WorkflowRuntime | None] = ContextVar("durablefuture_current_run", default=None)


def running(helper: str) -> WorkflowRuntime:
    """The run that the calling code is a part of.

    Args:
        helper: what needs it, for the message.

    Raises:
        RuntimeError: called outside of a workflow.
    """
    run = current_run.get()
    if run is None:
        raise RuntimeError(f"workflow.{helper} works only in the code of a running workflow")
    return run
