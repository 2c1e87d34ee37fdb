"""One stream: its messages by sequence and by subject, duplicates, and what a replica a moment behind would show."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from durablefuture_trio.memory_broker._subjects import is_literal, literal_prefix, matcher
from durablefuture_trio.ports.broker import Append, Conflict, Headers, Stored, StreamSpec, StreamState

DUPLICATE_WINDOW_S = 120.0
"""nats-server's default; unset in our stream specs."""

REMEMBERED_REMOVALS = 512
"""How many removed messages stale reads and forgotten acknowledgements can bring back."""


class Removed:
    """A message that was there from revision ``added`` until ``removed``."""

    __slots__ = ("added", "removed", "stored")

    def __init__(self, stored: Stored, added: int, removed: int) -> None:
        self.stored = stored
        self.added = added
        self.removed = removed


class Stream:
    """The messages of one stream. Knows nothing of time but what it is told, and nothing of links.

    Attributes:
        spec: as provisioned.
        created: identity, as in `StreamState`.
        revision: counts every message added or removed; stale reads are as of an earlier one.
        removals: the latest messages removed, oldest first.
        purged_whole: a purge of everything has counted the first sequence on, also of a stream that held nothing (m).
    """

    def __init__(self, spec: StreamSpec, created: str) -> None:
        self.spec = spec
        self.created = created
        self.revision = 0
        self.purged_whole = False
        self.removals: deque[Removed] = deque(maxlen=REMEMBERED_REMOVALS)
        self._last_seq = 0
        self._messages: dict[int, Stored] = {}
        self._added_at: dict[int, int] = {}
        self._by_subject: dict[str, dict[int, None]] = {}
        # Sequences by the first k tokens, for every k some pattern has asked for: built on first use.
        self._by_prefix: dict[int, dict[str, dict[int, None]]] = {}
        self._duplicates: OrderedDict[str, tuple[int, float]] = OrderedDict()  # cheap to take from the front

    # --- writing ------------------------------------------------------------------------------------------------------

    def check_expectation(self, append: Append) -> None:
        """Look at this before duplicates, as an unreplicated stream does (m).

        Raises:
            Conflict: the expected last sequence is another one.
        """
        if append.expect_last is not None:
            last = self.last_seq_of(append.subject)
            if last != append.expect_last:
                raise Conflict(f"{append.subject}: expected last sequence {append.expect_last}, it is {last}")

    def duplicate_of(self, append: Append, now: float) -> int | None:
        """The sequence of the message this one duplicates, or None: store it."""
        if append.message_id is None:
            return None
        known = self._duplicates.get(append.message_id)
        return known[0] if known is not None and now - known[1] < DUPLICATE_WINDOW_S else None

    def add(self, subject: str, body: bytes, headers: Headers, now: float, message_id: str | None = None) -> Stored:
        """Store a message."""
        self._last_seq = seq = self._last_seq + 1
        stored = Stored(subject=subject, seq=seq, time=now, body=body, headers=headers)
        if message_id is not None:
            self._remember(message_id, seq, now)
        if self.spec.last_per_subject and (earlier := self._by_subject.get(subject)):
            for old in list(earlier):
                self.remove(old)
        self._insert(stored)
        return stored

    def _insert(self, stored: Stored) -> None:
        self.revision += 1
        self._added_at[stored.seq] = self.revision
        self._index(stored)

    def _index(self, stored: Stored) -> None:
        seq, subject = stored.seq, stored.subject
        self._messages[seq] = stored
        self._by_subject.setdefault(subject, {})[seq] = None
        if self._by_prefix:
            tokens = subject.split(".")
            for depth, index in self._by_prefix.items():
                if len(tokens) >= depth:
                    index.setdefault(".".join(tokens[:depth]), {})[seq] = None

    def remove(self, seq: int) -> Stored | None:
        """Remove a message; None if it is not there."""
        stored = self._messages.pop(seq, None)
        if stored is None:
            return None
        self.revision += 1
        self.removals.append(Removed(stored, self._added_at.pop(seq), self.revision))
        subject = stored.subject
        _discard(self._by_subject, subject, seq)
        if self._by_prefix:
            tokens = subject.split(".")
            for depth, index in self._by_prefix.items():
                if len(tokens) >= depth:
                    _discard(index, ".".join(tokens[:depth]), seq)
        return stored

    def bring_back(self, messages: list[Stored]) -> None:
        """Put removed messages back at their places, as if they had never gone: their removal was not made durable."""
        back = {stored.seq: stored for stored in messages}
        for gone in list(self.removals):
            if gone.stored.seq in back:
                self._added_at[gone.stored.seq] = gone.added
                self.removals.remove(gone)
        known = self._messages | back
        self._messages, self._by_subject = {}, {}
        self._by_prefix = {depth: {} for depth in self._by_prefix}
        for seq in sorted(known):
            self._added_at.setdefault(seq, 0)
            self._index(known[seq])

    def _remember(self, message_id: str, seq: int, now: float) -> None:
        duplicates = self._duplicates
        duplicates[message_id] = (seq, now)
        duplicates.move_to_end(message_id)  # in the order of time
        while duplicates:
            oldest = next(iter(duplicates))
            if now - duplicates[oldest][1] < DUPLICATE_WINDOW_S:
                break
            del duplicates[oldest]

    def forget_duplicates_of_removed(self) -> None:
        """What a restart does: the ids are read back from the messages that are left."""
        self._duplicates = OrderedDict((key, at) for key, at in self._duplicates.items() if at[0] in self._messages)

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, seq: int) -> Stored | None:
        """The message with this sequence."""
        return self._messages.get(seq)

    @property
    def last_seq(self) -> int:
        """The last sequence given, whether or not it is still there."""
        return self._last_seq

    def last_seq_of(self, subject: str) -> int:
        """The last sequence on a literal subject; 0 if it holds nothing."""
        held = self._by_subject.get(subject)
        return next(reversed(held)) if held else 0

    def last(self, pattern: str, as_of: int | None = None) -> Stored | None:
        """The message with the highest sequence among those that match, now or as of an earlier revision."""
        if as_of is not None:
            return max(self._matching_at(pattern, as_of), key=lambda stored: stored.seq, default=None)
        messages, fits = self._messages, matcher(pattern)
        for seq in reversed(self._candidates(pattern)):
            if fits(messages[seq].subject):
                return messages[seq]
        return None

    def last_per_subject(self, pattern: str, as_of: int | None = None) -> list[Stored]:
        """The last message of every subject that matches, in stream order."""
        found: dict[str, Stored] = {}
        for stored in self._matching_at(pattern, as_of) if as_of is not None else self.matching(pattern):
            held = found.get(stored.subject)
            if held is None or held.seq < stored.seq:
                found[stored.subject] = stored
        return sorted(found.values(), key=lambda stored: stored.seq)

    def last_of_each(self, subjects: Sequence[str], as_of: int | None = None) -> dict[int, Stored]:
        """The last message of every subject that matches one of these, by sequence."""
        found: dict[int, Stored] = {}
        for subject in subjects:
            if as_of is None and is_literal(subject):
                if (stored := self.get(self.last_seq_of(subject))) is not None:
                    found[stored.seq] = stored
            else:
                found.update((stored.seq, stored) for stored in self.last_per_subject(subject, as_of))
        return found

    def matching(self, pattern: str, after: int = 0) -> Iterator[Stored]:
        """Messages on the pattern with a sequence above `after`, in stream order."""
        messages, fits = self._messages, matcher(pattern)
        for seq in self._candidates(pattern):
            if seq > after and fits((stored := messages[seq]).subject):
                yield stored

    def page(self, pattern: str, after: int, size: int) -> list[Stored]:
        """The first `size` of `matching`."""
        return list(islice(self.matching(pattern, after), size))

    def state(self, consumers: int) -> StreamState:
        """The stream's figures."""
        # A stream that never held anything says 0, an emptied one the sequence that comes next.
        first = next(iter(self._messages), self._last_seq + 1 if self._last_seq or self.purged_whole else 0)
        return StreamState(
            messages=len(self._messages),
            first_seq=first,
            last_seq=self._last_seq,
            consumers=consumers,
            created=self.created,
        )

    def _candidates(self, pattern: str) -> dict[int, None] | dict[int, Stored]:
        """Sequences, in order, among which all that match the pattern are."""
        if is_literal(pattern):
            return self._by_subject.get(pattern, {})
        prefix = literal_prefix(pattern)
        if not prefix:
            return self._messages
        depth = len(prefix)
        index = self._by_prefix.get(depth)
        if index is None:
            index = self._by_prefix[depth] = {}
            for seq, stored in self._messages.items():
                tokens = stored.subject.split(".")
                if len(tokens) >= depth:
                    index.setdefault(".".join(tokens[:depth]), {})[seq] = None
        return index.get(".".join(prefix), {})

    def _matching_at(self, pattern: str, revision: int) -> Iterator[Stored]:
        fits: Callable[[str], bool] = matcher(pattern)
        for stored in self.matching(pattern):
            if self._added_at[stored.seq] <= revision:
                yield stored
        for gone in self.removals:
            if gone.added <= revision < gone.removed and fits(gone.stored.subject):
                yield gone.stored


def _discard(index: dict[str, dict[int, None]], key: str, seq: int) -> None:
    held = index[key]
    del held[seq]
    if not held:
        del index[key]
