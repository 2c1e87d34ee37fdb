"""Why a run cannot go on with this code."""

from __future__ import annotations

from durablefuture_trio.errors import DurableFutureError, NondeterminismError
from durablefuture_trio.ports.frames import Blocked, BlockKind


class RunBlockedError(DurableFutureError):
    """The run cannot go on with this code; the history is as it was, and right code heals it.

    Attributes:
        kind: as in `Blocked`.
        source: the line of workflow code, if one is to blame.
        stack: a traceback for people.
        out_of_memory: the process ran into its memory limit, perhaps because of what others keep in it.
    """

    kind: BlockKind
    source: str = ""
    stack: str = ""
    out_of_memory: bool = False


def blocked_frame(error: RunBlockedError | NondeterminismError, *, exchange: int, run_id: str) -> Blocked:
    """The error as the frame that reports it."""
    if isinstance(error, NondeterminismError):
        return Blocked(
            exchange=exchange,
            run_id=run_id,
            kind="nondeterminism",
            message=error.message,
            recorded=error.recorded,
            produced=error.produced,
            source=error.source,
        )
    return Blocked(
        exchange=exchange,
        run_id=run_id,
        kind=error.kind,
        message=error.message,
        source=error.source,
        stack=error.stack,
    )
