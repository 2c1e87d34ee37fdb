"""The determinism check: what workflow code asks for must be what the history records.

Commands form one first-in-first-out queue across activations, emptied at each finished commit. Each recorded command
event must be the next produced command in kind, number and name. An unfinished commit (its writer died, or it was too
large for one message) may lack commands at its end: at the end of the history those are left over, and the next commit
is made of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from durablefuture_trio.engine.commands import (
    Command,
    RecordMarker,
    ScheduleActivity,
    signature_of_command,
    signature_of_event,
    values_of,
)
from durablefuture_trio.errors import NondeterminismError
from durablefuture_trio.history.events import Event, MarkerRecorded

CONTEXT_LINES = 3
"""How many matching commands are shown before the first difference."""

REMEDY = (
    "The workflow code differs from the code that wrote this history, or depends on something that is not in the "
    "history. The run waits, nothing is lost: run the code that wrote it, and let changed code apply to new runs."
)


class CommandMatcher:
    """Compares produced commands with recorded ones, for one replay of one history.

    Args:
        strict: differing values (arguments, results) are an error too. Otherwise those of an activity call are a
            warning.

    Attributes:
        strict: as above; may change from commit to commit.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self._produced: deque[Command] = deque()
        self._matched: deque[tuple[int, Command]] = deque(maxlen=CONTEXT_LINES)
        self._warnings: list[str] = []

    @property
    def unmatched(self) -> tuple[Command, ...]:
        """Produced commands that no event stands for yet, in order."""
        return tuple(self._produced)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Differences that do not break the replay: arguments that are not as recorded."""
        return tuple(self._warnings)

    def produce(self, commands: Iterable[Command]) -> None:
        """Take what an activation asked for, in order."""
        self._produced.extend(commands)

    def record(self, event: Event) -> None:
        """Match an event of the history; events that are not commands are ignored.

        Raises:
            NondeterminismError: the next produced command is another one, or there is none.
        """
        expected = signature_of_event(event)
        if expected is None:
            return
        if isinstance(event, MarkerRecorded) and event.deprecated and not self._produces_patch(event.patch):
            return  # the last side of a patch may go from the code once everybody has recorded it as deprecated
        if not self._produced:
            raise self._difference(describe(expected), "", event_id=event.id)
        command = self._produced.popleft()
        signature = signature_of_command(command)
        if signature != expected:
            raise self._difference(describe(expected), describe(signature), event_id=event.id, source=command.source)
        self._compare_values(command, event)
        self._matched.append((event.id, command))

    def _produces_patch(self, patch: str) -> bool:
        command = self._produced[0] if self._produced else None
        return isinstance(command, RecordMarker) and command.patch == patch

    def end_commit(self, *, finished: bool) -> None:
        """All events of a commit were given.

        Raises:
            NondeterminismError: the commit is finished, and the code asked for more than it records.
        """
        if finished and self._produced:
            command = self._produced[0]
            raise self._difference("", describe(signature_of_command(command)), source=command.source)

    def _compare_values(self, command: Command, event: Event) -> None:
        then, now = values_of(event), values_of(command)
        if then == now:
            return
        what = describe(signature_of_command(command))
        before, after = (_shown(b"" if value is None else value.data) for value in (then, now))
        if self.strict:
            raise self._difference(
                f"{what} with {before}", f"{what} with {after}", event_id=event.id, source=command.source
            )
        if isinstance(command, ScheduleActivity):
            self._warnings.append(
                f"event {event.id}: {what} was made with other arguments than recorded; the recorded ones were used "
                f"(recorded {before}, now {after}, at {command.source})"
            )

    def _difference(
        self, recorded: str, produced: str, *, event_id: int | None = None, source: str = ""
    ) -> NondeterminismError:
        lines = [
            f"  event {number}: {describe(signature_of_command(command))}{_at(command.source)}"
            for number, command in self._matched
        ]
        where = "end of the commit" if event_id is None else f"event {event_id}"
        lines.append(f"- {where}: {recorded or 'nothing more'}  (recorded)")
        lines.append(f"+ {where}: {produced or 'nothing more'}{_at(source)}  (produced)")
        shown = "\n".join(lines)
        return NondeterminismError(
            f"replay does not do what the history records:\n{shown}\n{REMEDY}",
            recorded=recorded,
            produced=produced,
            source=source,
        )


def describe(signature: tuple[str, int, str]) -> str:
    """A signature in words, e.g. ``schedule activity 3 'ship_package'``."""
    kind, call, name = signature
    return kind + (f" {call}" if call else "") + (f" {name!r}" if name else "")


def _at(source: str) -> str:
    return f" at {source}" if source else ""


def _shown(data: bytes) -> str:
    text = data[:80].decode("utf-8", "replace")
    return text + ("…" if len(data) > 80 else "")
