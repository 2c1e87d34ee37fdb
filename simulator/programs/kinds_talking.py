"""The kinds of nodes whose children wait for each other: events, locks, limiters, channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import trio

from simulator.programs.behaviours import mix
from simulator.programs.nodes import (
    SHARED,
    Fate,
    Interpreter,
    Kind,
    Maker,
    Node,
    beside_each_other,
    one_after_the_other,
)

PATIENCE_S = 20.0
"""So long a part of a program waits for another that may never come."""


class Handshake(Kind):
    """Children that wait for an event which the first one sets, and go on with what it left."""

    name = "event"
    weight = 3
    roles = ("before it is set", "after that")
    fewest = 1

    def make(self, maker: Maker) -> Node:
        return Node("event", maker.inside().blocks(2, 3))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        is_set = trio.Event()
        results = [value] * len(node.children)

        async def waiter(place: int, child: Node) -> None:
            await is_set.wait()
            results[place] = await interpreter.run(child, mix(results[0], place))

        async with trio.open_nursery() as nursery:
            for place, child in enumerate(node.children[1:], start=1):
                nursery.start_soon(waiter, place, child)
            results[0] = await interpreter.run(node.children[0], value)
            is_set.set()
        return mix(*results)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        fate = one_after_the_other((fates[0], beside_each_other(fates[1:])))
        return replace(fate, grouped=bool(fate.when_cancelled))


class Locked(Kind):
    """Children that take turns."""

    name = "lock"
    weight = 3
    fewest = 1

    def make(self, maker: Maker) -> Node:
        return Node("lock", maker.inside().blocks(2, 3))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        return await _taking_turns(interpreter, node, value, trio.Lock(), 1)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return replace(beside_each_other(fates), span=sum(fate.span for fate in fates))


class Limited(Kind):
    """Children of whom only so many are at work."""

    name = "limiter"
    weight = 3
    fewest = 1
    least = 1

    def make(self, maker: Maker) -> Node:
        return Node("limiter", maker.inside().blocks(2, 4), number=maker.rng.randint(1, 3))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        return await _taking_turns(interpreter, node, value, trio.CapacityLimiter(node.number), node.number)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return replace(beside_each_other(fates), span=sum(fate.span for fate in fates))


class Pipe(Kind):
    """Children that send what they have through a channel to one who collects it."""

    name = "channel"
    weight = 4
    fewest = 1
    ways = ("ordered", "as received")

    def make(self, maker: Maker) -> Node:
        way = "ordered" if maker.steady else maker.rng.choice(self.ways)
        return Node("channel", maker.inside().blocks(1, 3), number=maker.rng.randrange(3), way=way)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        send, receive = trio.open_memory_channel[tuple[int, int]](node.number)
        received: list[tuple[int, int]] = []

        async def producer(place: int, child: Node, own: trio.MemorySendChannel[tuple[int, int]]) -> None:
            async with own:
                await own.send((place, await interpreter.run(child, mix(value, place))))

        async with trio.open_nursery() as nursery:
            with send:
                for place, child in enumerate(node.children):
                    nursery.start_soon(producer, place, child, send.clone())
            with receive:
                async for item in receive:
                    received.append(item)  # noqa: PERF401 - they come one by one, and a cancel may come between
        return mix(*(got for _, got in (sorted(received) if node.way == "ordered" else received)))

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        fate = beside_each_other(fates)
        return replace(fate, certain=fate.certain and (node.way == "ordered" or len(fates) < 2))


class _Shared(Kind):
    """Something that all parts of the program know by its number."""

    is_leaf = True
    steady = False

    def make(self, maker: Maker) -> Node:
        return Node(self.name, number=maker.rng.randrange(SHARED))

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return Fate(certain=False, span=PATIENCE_S / 2)


class Set(_Shared):
    name = "set"
    weight = 3

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        interpreter.events[node.number].set()
        return value

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        # Only those who wait are affected, and nothing is known of them.
        return Fate(instant=True)


class Wait(_Shared):
    name = "wait"
    weight = 3

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        with trio.move_on_after(PATIENCE_S) as scope:
            await interpreter.events[node.number].wait()
        return mix(value, "waited in vain" if scope.cancelled_caught else "waited")


class Send(_Shared):
    name = "send"
    weight = 2

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        with trio.move_on_after(PATIENCE_S):
            await interpreter.channels[node.number][0].send(value)
        return value


class Receive(_Shared):
    name = "receive"
    weight = 2

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        got = value
        with trio.move_on_after(PATIENCE_S):
            got = await interpreter.channels[node.number][1].receive()
        return mix(value, got)


async def _taking_turns(
    interpreter: Interpreter, node: Node, value: int, turns: trio.Lock | trio.CapacityLimiter, most: int
) -> int:
    results = [0] * len(node.children)
    at_work = 0

    async def runner(place: int, child: Node) -> None:
        nonlocal at_work
        async with turns:
            at_work += 1
            if at_work > most:
                raise AssertionError(f"{at_work} have a turn, of {most}")
            try:
                results[place] = await interpreter.run(child, mix(value, place))
            finally:
                at_work -= 1

    async with trio.open_nursery() as nursery:
        for place, child in enumerate(node.children):
            nursery.start_soon(runner, place, child)
    return mix(*results)


TALKING: tuple[Kind, ...] = (Handshake(), Locked(), Limited(), Pipe(), Set(), Wait(), Send(), Receive())
