"""A commit in the making, and its cutting into messages that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from durablefuture_trio.engine.mail import Owed, is_done_when_committed
from durablefuture_trio.engine.outputs import Output
from durablefuture_trio.engine.requests import Inbound
from durablefuture_trio.errors import PayloadError
from durablefuture_trio.history.commit import Commit, encode_commit
from durablefuture_trio.history.events import Event, WorkflowStarted


@dataclass(slots=True)
class Draft:
    """Events decided but not yet published, and what follows from them once they are committed.

    Attributes:
        events: in order; already folded into the owner's state.
        effects: outputs that may leave only after the commit is acknowledged.
        inputs: what was consumed for it, to be decided again if the commit is lost.
        starts_run: a WorkflowStarted is among the events.
    """

    events: list[Event] = field(default_factory=list)
    effects: list[Output | Owed] = field(default_factory=list)
    inputs: list[object] = field(default_factory=list)
    starts_run: bool = False

    @property
    def sequences(self) -> list[int]:
        """The inbox messages decided with it."""
        return [item.seq for item in self.inputs if isinstance(item, Inbound)]

    @property
    def consumed(self) -> list[int]:
        """Those that are done with once it is committed; a workflow's request is when its answer is stored."""
        return [item.seq for item in self.inputs if isinstance(item, Inbound) and is_done_when_committed(item)]


@dataclass(slots=True)
class Part:
    """One frozen message of a flight; a published number is never rebuilt."""

    n: int
    commit_id: str
    body: bytes
    finished: bool


@dataclass(slots=True)
class Flight:
    """A draft on its way: its messages in order, published one after the other.

    Attributes:
        may_owe: of the state, once it is committed.
    """

    draft: Draft
    parts: list[Part]
    may_owe: bool = False
    index: int = 0

    @property
    def part(self) -> Part:
        return self.parts[self.index]


def freeze(
    template: Commit, events: Sequence[Event], n: int, limit_bytes: int, new_id: Callable[[], str]
) -> list[Part]:
    """Encode `events` as one commit, or, when that exceeds `limit_bytes`, as several over consecutive numbers, cut
    between events; all but the last are unfinished.

    Args:
        template: the commit without its events and id.

    Raises:
        PayloadError: a single event exceeds the limit.
    """
    commit_id = new_id()
    body = encode_commit(msgspec.structs.replace(template, commit_id=commit_id, events=tuple(events)))
    if len(body) <= limit_bytes:
        return [Part(n, commit_id, body, template.finished)]
    if len(events) < 2:
        kind = type(events[0]).__name__ if events else "commit"
        raise PayloadError(
            f"a {kind} event takes {len(body)} bytes, the server's messages hold {limit_bytes}: "
            "pass large values by reference, or raise max_payload of the server",
            path="$",
        )
    middle = max(len(events) // 2, _indivisible_head(events))
    if middle >= len(events):
        raise PayloadError("the first event of a run does not fit one message of the server", path="$")
    head = msgspec.structs.replace(template, finished=False)
    parts = freeze(head, events[:middle], n, limit_bytes, new_id)
    return parts + freeze(template, events[middle:], parts[-1].n + 1, limit_bytes, new_id)


def _indivisible_head(events: Sequence[Event]) -> int:
    """The closing events of an earlier run and the WorkflowStarted after them are one message, or a crash could come
    between the end of the one run and the beginning of the other."""
    return next((index + 1 for index, event in enumerate(events) if isinstance(event, WorkflowStarted)), 1)
