"""Signals that nobody has taken yet, and the channels that take them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import trio

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.history.events import CarriedSignal

T = TypeVar("T")


class ReceivedSignal:
    """A signal and its number among those of the run."""

    __slots__ = ("carried", "number")

    def __init__(self, number: int, carried: CarriedSignal) -> None:
        self.number = number
        self.carried = carried


class _Box:
    __slots__ = ("channels", "lot", "signals")

    def __init__(self) -> None:
        self.signals: deque[ReceivedSignal] = deque()
        self.lot = trio.lowlevel.ParkingLot()
        self.channels = 0


class Mailbox:
    """The signals of a run that nobody has taken. Their number has no limit here; their senders' owner has one.

    Attributes:
        held: nothing is taken any more.
    """

    def __init__(self) -> None:
        self.held = False
        self._boxes: dict[str, _Box] = {}

    def put(self, signal: ReceivedSignal) -> None:
        """Keep a signal; wakes who waits for it."""
        box = self.box(signal.carried.name)
        box.signals.append(signal)
        if box.lot:
            box.lot.unpark()

    def wake_all(self) -> None:
        """Wake everybody who waits, to look again."""
        for box in self._boxes.values():
            box.lot.unpark_all()

    def take_all(self, name: str) -> list[ReceivedSignal]:
        """Take the signals of a name, in the order they came in."""
        box = self._boxes.pop(name, None)
        return [] if box is None else list(box.signals)

    def everything(self) -> dict[int, ReceivedSignal]:
        """What is kept, by number."""
        return {signal.number: signal for box in self._boxes.values() for signal in box.signals}

    def has_channel(self, name: str) -> bool:
        """Whether a channel for signals of this name is open."""
        return name in self._boxes and self._boxes[name].channels > 0

    def box(self, name: str) -> _Box:
        """The signals of a name and who waits for them."""
        box = self._boxes.get(name)
        if box is None:
            box = self._boxes[name] = _Box()
        return box


class SignalChannel(trio.abc.ReceiveChannel[T]):
    """What `workflow.signal_channel` gives. Several of one name share the signals: each signal goes to one of them.

    Args:
        decode: makes the value out of the encoded arguments.
        undecodable: told of a signal that has no value; it is left out.
    """

    def __init__(
        self, mail: Mailbox, name: str, decode: Callable[[Payload], T], undecodable: Callable[[Exception], None]
    ) -> None:
        self._mail = mail
        self._box = mail.box(name)
        self._box.channels += 1
        self._decode = decode
        self._undecodable = undecodable
        self._closed = False

    async def receive(self) -> T:
        """The next signal's value.

        Raises:
            trio.ClosedResourceError: this channel was closed.
            trio.BusyResourceError: never; several tasks may wait.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                value = self.receive_nowait()
            except trio.WouldBlock:
                await self._box.lot.park()
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return value

    def receive_nowait(self) -> T:
        """The next signal's value, if one waits.

        Raises:
            trio.WouldBlock: none does.
            trio.ClosedResourceError: this channel was closed.
        """
        if self._closed:
            raise trio.ClosedResourceError
        signals = self._box.signals
        while signals and not self._mail.held:
            signal = signals.popleft()
            try:
                return self._decode(signal.carried.arguments)
            except (MemoryError, RecursionError):
                raise
            except Exception as error:  # noqa: BLE001 - whatever a user's class raises while it is rebuilt
                self._undecodable(error)
        raise trio.WouldBlock

    def close(self) -> None:
        """Take no more signals; those that nobody has taken wait for the next channel or handler."""
        if not self._closed:
            self._closed = True
            self._box.channels -= 1
            self._box.lot.unpark_all()

    async def aclose(self) -> None:
        """`close`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __enter__(self) -> SignalChannel[T]:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: Any, _traceback: TracebackType | None) -> None:
        self.close()
