"""The end of a history that is not finished: what code had asked for when its writer died."""

from __future__ import annotations

from collections.abc import Sequence

from durablefuture_trio.engine.commands import signature_of_event
from durablefuture_trio.history.commit import Commit, own_events
from durablefuture_trio.history.events import (
    TERMINAL_EVENTS,
    ActivityCancelRequested,
    ChildCancelRequested,
    Event,
    EventClass,
    class_of,
)
from durablefuture_trio.sandbox._asked import AskedCommands

Tail = dict[int, tuple[Event, ...]]

_LAST = (ActivityCancelRequested, ChildCancelRequested, *TERMINAL_EVENTS)


def unfinished_tail(commits: Sequence[Commit]) -> Tail:
    """For each event behind the last finished commit, by its id: the commands that are recorded after it."""
    tail: Tail = {}
    commands: tuple[Event, ...] = ()
    for commit in reversed(commits):
        if commit.finished:
            break
        for event in reversed(own_events(commit)):
            tail[event.id] = commands
            if class_of(event) is EventClass.COMMAND:
                commands = (event, *commands)
    return tail


def is_past(recorded: Sequence[Event], asked: AskedCommands, calls_made: int) -> bool:
    """Whether the code of an activation has already asked for everything that is recorded of it and after it, so that
    what it does from here on is decided now.

    Calls that were made may have been taken back; their numbers still say that the code has come past them.
    """
    for event in recorded:
        if isinstance(event, _LAST):
            return False  # cancels and the end come last: everything is recorded
        signature = signature_of_event(event)
        assert signature is not None  # it is a command
        _, call, _ = signature
        if call > calls_made or (call == 0 and not asked.has(signature)):
            return False
    return True
