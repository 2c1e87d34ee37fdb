"""The kinds of nodes that wait for messages from outside."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from durablefuture_trio.authoring import workflow
from simulator.programs.behaviours import mix
from simulator.programs.desk import parcel
from simulator.programs.nodes import Fate, Interpreter, Kind, Maker, Node


class _Awaited(Kind):
    """Something from outside that is waited for, but not for ever. Told or not, whether it came."""

    is_leaf = True
    ways = ("ignored", "told")

    def make(self, maker: Maker) -> Node:
        way = "ignored" if maker.steady else maker.rng.choice(self.ways)
        return Node(self.name, seconds=maker.moment(), way=way)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        with trio.move_on_after(node.seconds) as scope:
            await self.wait(interpreter)
        if node.way == "ignored":
            return value
        return mix(value, "in vain" if scope.cancelled_caught else "came")

    async def wait(self, interpreter: Interpreter) -> None:
        """Without a limit."""
        raise NotImplementedError

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return Fate(certain=node.way == "ignored", instant=False, span=node.seconds)


class Nudged(_Awaited):
    """Waits for the handler of a signal to have been called."""

    name = "nudged"
    weight = 4

    async def wait(self, interpreter: Interpreter) -> None:
        so_far = len(interpreter.desk.nudges)
        if not await workflow.wait_until(lambda: len(interpreter.desk.nudges) > so_far):
            raise AssertionError("wait_until has returned, and what it waited for does not hold")


class Received(_Awaited):
    """Waits for a signal in a channel."""

    name = "parcel"
    weight = 4

    async def wait(self, interpreter: Interpreter) -> None:
        async with workflow.signal_channel(parcel.name, type=str) as channel:
            interpreter.desk.parcels.append(await channel.receive())


class Opened(Kind):
    """From here on an update is handled that waited until now."""

    name = "open late"
    weight = 2
    is_leaf = True

    def make(self, maker: Maker) -> Node:
        return Node("open late")

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        interpreter.desk.open_late()
        return value

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return Fate(instant=True)


MESSAGES: tuple[Kind, ...] = (Nudged(), Received(), Opened())
