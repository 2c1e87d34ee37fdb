"""The inbox messages an owner holds: which are consumed, which may be acknowledged."""

from __future__ import annotations


class Anchors:
    """Unacknowledged deliveries of the current epoch, by inbox sequence.

    A message is acknowledged only when it has been consumed (its commit is in the history, or it was declined), and
    then the oldest stays as long as anything of the run lives in this process only: being delivered again to the next
    owner is all it is kept for.
    """

    def __init__(self) -> None:
        self._handles: dict[int, object] = {}
        self._consumed: set[int] = set()

    def __contains__(self, seq: int) -> bool:
        return seq in self._handles

    def __bool__(self) -> bool:
        return bool(self._handles)

    def hold(self, seq: int, handle: object) -> None:
        """A delivery has come (perhaps again: then the latest handle counts)."""
        self._handles[seq] = handle

    def consume(self, *sequences: int) -> None:
        """These messages are decided for good."""
        self._consumed.update(sequences)

    def release(self, keep: int) -> list[object]:
        """The handles of the consumed messages beyond the oldest `keep`; they are forgotten here."""
        if len(self._handles) <= keep:
            return []
        surplus = sorted(self._consumed & self._handles.keys())[keep:]
        self._consumed.difference_update(surplus)
        return [self._handles.pop(seq) for seq in surplus]

    def clear(self) -> None:
        """A new epoch: everything unacknowledged will be delivered again, under new handles."""
        self._handles.clear()
        self._consumed.clear()
