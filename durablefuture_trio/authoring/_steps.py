"""What workflow code asks of other workflows and of its own versions: the part of the `workflow` object for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack, overload

from durablefuture_trio.authoring._children import (
    ChildOptions,
    ChildWorkflow,
    ExternalWorkflow,
    HasRun,
    child_start,
    target_of,
)
from durablefuture_trio.authoring._runtime import ContinueAsNewRequested, running

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class StepHelpers:
    """``workflow.start_child``, ``.handle``, ``.continue_as_new``, ``.patched``, ``.deprecate_patch``."""

    @overload
    def start_child(
        self, wf: Callable[[*Ts], Awaitable[R]], *args: *Ts, **options: Unpack[ChildOptions]
    ) -> ChildWorkflow[R]: ...
    @overload
    def start_child(
        self, wf: Callable[[], HasRun[*Ts, R]], *args: *Ts, **options: Unpack[ChildOptions]
    ) -> ChildWorkflow[R]: ...
    @overload
    def start_child(
        self, wf: str, *args: Any, result_type: type[R], **options: Unpack[ChildOptions]
    ) -> ChildWorkflow[R]: ...
    @overload
    def start_child(
        self, wf: str, *args: Any, result_type: Any = ..., **options: Unpack[ChildOptions]
    ) -> ChildWorkflow[Any]: ...
    def start_child(  # type: ignore[misc]  # mypy does not accept *args: Any as an implementation of *args: *Ts
        self, wf: Any, *args: Any, result_type: Any = Any, **options: Unpack[ChildOptions]
    ) -> ChildWorkflow[Any]:
        """Start a child workflow and go on: a future of its result.

            child = workflow.start_child(ship_parcel, parcel, id=f"parcel-{parcel.number}", parent_close="abandon")
            await child.started()
            receipt = await child

        ``await ship_parcel(parcel)`` starts a child and waits for it; a cancelled wait cancels the child and waits for
        its end.

        Args:
            wf: a ``@workflow`` function or class, or the name of one.
            args: its arguments, by position.
            result_type: what the result is rebuilt as, when `wf` is a name.
            options: see `ChildOptions`.

        Raises:
            RuntimeError: called outside of a workflow.
            TypeError: `wf` is no workflow, the arguments do not fit its signature, or an option is wrong.
            ValueError: the id cannot be one, or an option is out of its range.
            PayloadError: an argument cannot be encoded, or they are too large.
            LimitExceededError: too many children of the run are open.
        """
        run = running("start_child()")
        target = target_of(wf, args, {}, result_type)
        return ChildWorkflow(run.submit_child(child_start(target, options)), run)

    def handle(self, id: str, run_id: str | None = None) -> ExternalWorkflow:  # noqa: A002 - pinned by the public API
        """A handle on another workflow, to signal, cancel or await it from workflow code. Asks nobody: whether it
        exists shows when it is used.

        Args:
            id: the workflow id.
            run_id: one run of it, which has to be the latest one or the first of the chain that the latest one goes on
                with; default: whichever is the latest when the request arrives.

        Raises:
            RuntimeError: called outside of a workflow (there, `client.handle` is what is needed).
            ValueError: the id cannot be one.
        """
        return ExternalWorkflow(running("handle()"), id, run_id)

    @overload
    def continue_as_new(self, *args: Any, workflow: str | None = None) -> NoReturn: ...
    @overload
    def continue_as_new(self, *args: *Ts, workflow: Callable[[*Ts], Awaitable[Any]]) -> NoReturn: ...
    @overload
    def continue_as_new(self, *args: *Ts, workflow: Callable[[], HasRun[*Ts, Any]]) -> NoReturn: ...
    def continue_as_new(self, *args: Any, workflow: Any = None) -> NoReturn:  # type: ignore[misc]  # as for start_child
        """End this run and go on in a fresh one with these arguments: same workflow id, empty history.

        Signals and updates that this run has not taken go over to the next, and so does a cancel. It works in any task
        of the run: what it raises is no `Exception` and passes through nurseries.

        Args:
            args: the next run's arguments, by position.
            workflow: what runs next: a ``@workflow`` function or class, or the name of one; default: the same as now.

        Raises:
            RuntimeError: called outside of a workflow.
            TypeError: the arguments do not fit the signature. PayloadError: they cannot be encoded.
        """
        run = running("continue_as_new()")
        target = target_of(run.definition if workflow is None else workflow, args, {})
        raise ContinueAsNewRequested(target.name, target.arguments)

    def patched(self, id: str) -> bool:  # noqa: A002 - the field's word
        """Whether this run takes the new side of a change of the workflow's code.

            if workflow.patched("ship-by-drone"):
                await ship_by_drone(charge)
            else:
                await ship_package(charge)

        A run that comes here for the first time takes the new side and records it; one whose history goes on from here
        takes the side that its history took. Within a run the answer never changes. Once no open run is without the
        patch, replace the whole by the new side and `deprecate_patch`, and once all runs that recorded it by `patched`
        have closed, take that away too.

        Args:
            id: names the change; the same in both steps.

        Raises:
            RuntimeError: called outside of a workflow. TypeError, ValueError: the id is no text, or empty.
        """
        _check_patch(id)
        return running("patched()").patched(id)

    def deprecate_patch(self, id: str) -> None:  # noqa: A002 - the field's word
        """Stand for a patch whose old side is gone from the code: histories with the patch replay, and new ones may
        later be replayed by code that knows nothing of it any more. See `patched`.

        Raises:
            RuntimeError: called outside of a workflow. TypeError, ValueError: the id is no text, or empty.
        """
        _check_patch(id)
        running("deprecate_patch()").deprecate_patch(id)


def _check_patch(patch: object) -> None:
    if not isinstance(patch, str):
        raise TypeError(f"the id of a patch is text, not {patch!r}")
    if not patch:
        raise ValueError("the id of a patch must not be empty")
