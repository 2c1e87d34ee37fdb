"""The kinds of nodes that call, wait, fail, and open nurseries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import trio

from durablefuture_trio.authoring import workflow
from durablefuture_trio.errors import ApplicationError
from simulator.programs.behaviours import PLAIN, mix, tally, work
from simulator.programs.nodes import Fate, Interpreter, Kind, Maker, Node, beside_each_other, one_after_the_other

ACTIVITY = "activity"
APPLICATION = "application"
SLOW = "too slow"


class Sequence_(Kind):  # noqa: N801 - the plain word is taken by the type
    name = "sequence"
    weight = 4

    def make(self, maker: Maker) -> Node:
        return Node("sequence", tuple(maker.inside().node() for _ in range(maker.rng.randint(0, 3))))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        for child in node.children:
            value = await interpreter.run(child, value)
        return value

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return one_after_the_other(fates)


class Call(Kind):
    """An activity call."""

    name = "call"
    weight = 24
    is_leaf = True

    def make(self, maker: Maker) -> Node:
        return Node("call", behaviour=maker.behaviour(may_fail=ACTIVITY in maker.failures))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        behaviour = node.behaviour or PLAIN
        return await behaviour.calls(work)(behaviour, value)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        behaviour = node.behaviour or PLAIN
        return Fate(
            certain=behaviour.certain,
            failures=frozenset({ACTIVITY} if behaviour.may_fail else ()),
            when_cancelled=frozenset({ACTIVITY} if behaviour.may_fail_when_cancelled else ()),
            which=not behaviour.may_fail or behaviour.certain_failure,
            span=behaviour.longest_s,
        )


class FanOut(Kind):
    """Many calls beside each other, and one that takes all their results."""

    name = "fan out"
    weight = 5
    fewest = 1

    def make(self, maker: Maker) -> Node:
        within = maker.inside()
        call = within.kinds["call"]
        width = maker.rng.randint(2, 12)
        # One behaviour for most of them, as a program would have it.
        usual = call.make(within)
        calls = [usual if maker.rng.random() < 0.7 else call.make(within) for _ in range(width)]
        maker.budget.nodes -= width // 3
        return Node("fan out", tuple(calls), behaviour=maker.behaviour(may_fail=False))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        results = await _side_by_side(interpreter, node.children, value)
        behaviour = node.behaviour or PLAIN
        return await behaviour.calls(tally)(behaviour, [result for _, result in sorted(results)])

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        last = Call().fate(node, ())
        return one_after_the_other((beside_each_other(fates), last))

    def smaller(self, node: Node) -> Iterator[Node]:
        yield Node("call", behaviour=node.behaviour)
        yield from super().smaller(node)


class Sleep(Kind):
    name = "sleep"
    weight = 10
    is_leaf = True

    def make(self, maker: Maker) -> Node:
        return Node("sleep", seconds=maker.moment())

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        await trio.sleep(node.seconds)
        return value

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return Fate(instant=node.seconds == 0, at_least=node.seconds, span=node.seconds)


class Checkpoint(Kind):
    name = "checkpoint"
    weight = 2
    is_leaf = True

    def make(self, maker: Maker) -> Node:
        return Node("checkpoint")

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        await trio.lowlevel.checkpoint()
        return value

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return Fate(instant=True)


class Dice(Kind):
    """The run's own randomness and time, without an effect on the outcome."""

    name = "dice"
    weight = 3
    is_leaf = True
    ways = ("now", "uuid4", "random")

    def make(self, maker: Maker) -> Node:
        return Node("dice", way=maker.rng.choice(self.ways))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        if node.way == "random":
            await trio.sleep(workflow.random().random())
        elif node.way == "uuid4":
            if workflow.uuid4() == workflow.uuid4():
                raise AssertionError("the same UUID twice")
        elif abs(workflow.now().timestamp() - trio.current_time()) > 1e-3:
            raise AssertionError(f"now() is {workflow.now()}, Trio's clock is at {trio.current_time()}")
        return value

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return Fate(instant=node.way != "random", span=float(node.way == "random"))


class Lottery(Kind):
    """A number that depends on what else has drawn from the run's randomness."""

    name = "lottery"
    weight = 1
    is_leaf = True
    steady = False

    def make(self, maker: Maker) -> Node:
        return Node("lottery")

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        return mix(value, workflow.random().randrange(1000))

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return Fate(certain=False, instant=True)


class Raise(Kind):
    """An error of the workflow's own."""

    name = "raise"
    weight = 2
    is_leaf = True
    raises = APPLICATION

    def make(self, maker: Maker) -> Node:
        return Node("raise")

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        raise ApplicationError(f"raised at {value}", type="Raised")

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return Fate(failures=frozenset({APPLICATION}), when_cancelled=frozenset({APPLICATION}), instant=True)


class Nursery(Kind):
    """Children beside each other; their values are joined in their order, or in the order in which they came."""

    name = "nursery"
    weight = 10
    fewest = 1
    ways = ("ordered", "as completed")

    def make(self, maker: Maker) -> Node:
        way = "ordered" if maker.steady else maker.rng.choice(self.ways)
        return Node("nursery", maker.inside().blocks(2, 4), way=way)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        results = await _side_by_side(interpreter, node.children, value)
        return mix(*(result for _, result in (sorted(results) if node.way == "ordered" else results)))

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        fate = beside_each_other(fates)
        return replace(fate, certain=fate.certain and (node.way == "ordered" or len(fates) < 2))


class Start(Kind):
    """A service that reports when it is ready, and goes on beside the one who waited for that."""

    name = "start"
    weight = 3
    roles = ("until it is ready", "and then", "beside it")
    fewest = 3

    def make(self, maker: Maker) -> Node:
        return Node("start", maker.inside().blocks(3, 3))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        until_ready, and_then, beside = node.children
        results = [0, 0]

        async def service(task_status: trio.TaskStatus[int]) -> None:
            ready = await interpreter.run(until_ready, value)
            task_status.started(ready)
            results[0] = await interpreter.run(and_then, ready)

        async with trio.open_nursery() as nursery:
            ready = await nursery.start(service)
            results[1] = await interpreter.run(beside, mix(ready, "beside"))
        return mix(*results)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        fate = one_after_the_other((fates[0], beside_each_other(fates[1:])))
        return replace(fate, grouped=bool(fate.when_cancelled))


class Race(Kind):
    """The first child that is done cancels the others."""

    name = "race"
    weight = 3
    steady = False
    fewest = 1

    def make(self, maker: Maker) -> Node:
        return Node("race", maker.inside().blocks(2, 3))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        done: list[int] = []

        async def runner(place: int, child: Node) -> None:
            done.append(await interpreter.run(child, mix(value, place)))
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for place, child in enumerate(node.children):
                nursery.start_soon(runner, place, child)
        return mix(*done)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        fate = beside_each_other(fates)
        least = min(child.at_least for child in fates)
        return replace(fate, certain=False, failures=fate.when_cancelled, at_least=least)


async def _side_by_side(interpreter: Interpreter, children: Sequence[Node], value: int) -> list[tuple[int, int]]:
    """The place and the value of each child, in the order in which they were done."""
    results: list[tuple[int, int]] = []

    async def runner(place: int, child: Node) -> None:
        results.append((place, await interpreter.run(child, mix(value, place))))

    async with trio.open_nursery() as nursery:
        for place, child in enumerate(children):
            nursery.start_soon(runner, place, child)
    return results


BASIC: tuple[Kind, ...] = (
    Sequence_(), Call(), FanOut(), Sleep(), Checkpoint(), Dice(), Lottery(), Raise(), Nursery(), Start(), Race(),
)  # fmt: skip
