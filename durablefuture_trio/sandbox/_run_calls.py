"""What a run offers its code of durable calls: activities, children, other workflows, patches."""

from __future__ import annotations

from typing import Any

from durablefuture_trio import codec
from durablefuture_trio._ids import check_workflow_id
from durablefuture_trio.authoring._children import ChildStart
from durablefuture_trio.authoring._futures import DurableCall
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.commands import RecordMarker
from durablefuture_trio.history.events import Event, WorkflowStarted
from durablefuture_trio.history.options import ActivityOptionsRecord
from durablefuture_trio.sandbox._asked import AskedCommands
from durablefuture_trio.sandbox._call_kinds import ActivityCall, Call, ChildWorkflowCall
from durablefuture_trio.sandbox._calls import DurableCalls
from durablefuture_trio.sandbox._sources import source_here
from durablefuture_trio.sandbox._tail import is_past
from durablefuture_trio.sandbox._trio_driver import RunDropped


class RunCalls:
    """The part of `WorkflowRun` that makes durable calls; see `authoring._runtime.WorkflowRuntime` for what each does.

    Attributes:
        history_patches: the patches that the history being replayed has markers of.
        recorded_ahead: the commands that are recorded after the stimulus which is replayed, if the history ends before
            it says that there are no others; None: it does say so.

    Attributes of the run that are used here: ``_asked``, ``_calls``, ``_started``, ``_closing``, ``_replaying``.
    """

    _asked: AskedCommands
    _calls: DurableCalls
    _started: WorkflowStarted
    _closing: bool
    _replaying: bool

    def __init__(self) -> None:
        self._patches: dict[str, bool] = {}
        self.history_patches: frozenset[str] = frozenset()
        self.recorded_ahead: tuple[Event, ...] | None = None

    @property
    def beyond_history(self) -> bool:
        """Whether the code has come past what is recorded, although a history is being replayed: its writer died, or
        the run was blocked. What the code does from here on is decided now, as in a live activation."""
        ahead = self.recorded_ahead
        return ahead is not None and is_past(ahead, self._asked, self._calls.made)

    def refuse(self, what: str) -> None:
        """Raise if the code may not ask for anything now."""
        if self._closing:
            raise RunDropped

    # --- activities ---------------------------------------------------------------------------------------------------

    async def call_activity(
        self, name: str, arguments: tuple[Any, ...], options: ActivityOptionsRecord, result_type: Any
    ) -> Any:
        """Schedule an activity and wait for its result, or raise `ActivityError`."""
        call = self._schedule(name, arguments, options, result_type)
        del arguments  # may be large, and this frame lives as long as the activity takes
        return await self._calls.awaited(call)

    def submit_activity(
        self, name: str, arguments: tuple[Any, ...], options: ActivityOptionsRecord, result_type: Any
    ) -> ActivityCall:
        """Schedule an activity that goes on by itself."""
        return self._schedule(name, arguments, options, result_type)

    def _schedule(
        self, name: str, arguments: tuple[Any, ...], options: ActivityOptionsRecord, result_type: Any
    ) -> ActivityCall:
        self.refuse(f"activity {name!r}")
        return self._calls.activity(name, codec.encode_arguments(arguments), options, result_type)

    # --- other workflows ----------------------------------------------------------------------------------------------

    async def call_child(self, start: ChildStart) -> Any:
        """Start a child workflow and wait for its result, or raise `ChildWorkflowError`."""
        call = self.submit_child(start)
        del start
        return await self._calls.awaited(call)

    def submit_child(self, start: ChildStart) -> ChildWorkflowCall:
        """Start a child workflow that goes on by itself."""
        self.refuse(f"child workflow {start.target.name!r}")
        return self._calls.child(start, self._child_id)

    def _child_id(self, number: int) -> str:
        workflow_id = f"{self._started.workflow_id}/{self._started.run_id[:8]}-{number}"
        try:
            check_workflow_id(workflow_id)
        except ValueError as error:
            raise ValueError(f"{error}: give the child an id of its own, workflow.start_child(..., id=...)") from None
        return workflow_id

    async def signal_external(self, workflow_id: str, run_id: str, name: str, arguments: Payload) -> None:
        """Send a signal to another workflow."""
        self.refuse(f"signal {name!r}")
        await self._calls.awaited(self._calls.external("signal", workflow_id, run_id, name=name, arguments=arguments))

    async def cancel_external(self, workflow_id: str, run_id: str, reason: str) -> None:
        """Ask another workflow to end."""
        self.refuse("cancel of a workflow")
        await self._calls.awaited(self._calls.external("cancel", workflow_id, run_id, reason=reason))

    async def result_external(self, workflow_id: str, run_id: str, result_type: Any) -> Any:
        """Wait for the end of another workflow."""
        self.refuse("the result of a workflow")
        started = self._started
        if workflow_id == started.workflow_id and run_id in ("", started.run_id, started.chain_id):
            raise ValueError(f"workflow {workflow_id!r} cannot wait for its own end: it would wait for ever")
        return await self._calls.awaited(self._calls.external("result", workflow_id, run_id, result_type=result_type))

    def owns(self, call: DurableCall) -> bool:
        """Whether the call was made in this run."""
        return isinstance(call, Call) and call.calls is self._calls

    # --- patches ------------------------------------------------------------------------------------------------------

    def patched(self, patch: str) -> bool:
        """Whether the run takes the new side of a patch: when it meets it for the first time beyond its history, or the
        history says that it did."""
        known = self._patches.get(patch)
        if known is None:
            known = self._patches[patch] = self._record_patch(patch, deprecated=False)
        return known

    def deprecate_patch(self, patch: str) -> None:
        """The old side of a patch is gone from the code."""
        if patch not in self._patches:
            self._patches[patch] = self._record_patch(patch, deprecated=True)

    def _record_patch(self, patch: str, *, deprecated: bool) -> bool:
        self.refuse(f"patch {patch!r}")
        if self._replaying and patch not in self.history_patches and not self.beyond_history:
            return False
        self._asked.add(RecordMarker(patch=patch, deprecated=deprecated, source=source_here(2)))
        return True
