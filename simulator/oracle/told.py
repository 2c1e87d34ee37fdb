"""What clients write down of what they were told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.programs.desk import Seen


@dataclass(frozen=True)
class StartTold:
    """What a client was told about its start.

    Attributes:
        run_id: the run it was given; None: the start was refused.
        new: whether that run had to be this request's own (it was not told to use an existing one).
    """

    workflow_id: str
    request_id: str
    run_id: str | None
    new: bool


@dataclass(frozen=True)
class EndTold:
    """What a client was told about the end of a run, or of the last of those that went on from it: `how` is the name of
    the terminal event."""

    workflow_id: str
    run_id: str
    how: str


@dataclass(frozen=True)
class TerminateTold:
    """A client was told that its terminate request was applied, or refused."""

    workflow_id: str
    request_id: str
    applied: bool


@dataclass(frozen=True)
class CancelTold:
    """A client was told that its cancel was applied, or refused. One that comes to a run that is cancelled already is
    applied and leaves no event."""

    workflow_id: str
    request_id: str
    applied: bool


@dataclass(frozen=True)
class SignalTold:
    """A client was told that its signal was recorded, or refused."""

    workflow_id: str
    tag: str
    applied: bool


@dataclass(frozen=True)
class UpdateTold:
    """What a client was told about an update.

    Attributes:
        how: ``completed`` with `value`; ``failed``: the handler raised, or the run ended; ``rejected`` by the
            validator; ``refused``: not delivered.
        wanted: what `value` has to be.
        alone: nobody else has asked for it. One that is rejected leaves no trace, and may be accepted of somebody else
            by a run that has no handler yet.
    """

    workflow_id: str
    update_id: str
    how: Literal["completed", "failed", "rejected", "refused"]
    value: int | None = None
    wanted: int | None = None
    alone: bool = True


@dataclass(frozen=True)
class QueryTold:
    """The answer to a query.

    Attributes:
        since: how many words all clients together had been told when it was asked.
    """

    workflow_id: str
    since: int
    seen: Seen


Told = StartTold | EndTold | TerminateTold | CancelTold | SignalTold | UpdateTold | QueryTold
