"""The kinds of nodes whose calls go on by themselves: durable futures and what waits for several of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from durablefuture_trio.authoring import DurableFuture, as_completed, durable_map, first, gather, outcomes
from durablefuture_trio.errors import DurableFutureError
from simulator.programs.behaviours import PLAIN, Behaviour, mix, work
from simulator.programs.kinds import ACTIVITY, Call
from simulator.programs.nodes import NOTHING, Fate, Interpreter, Kind, Maker, Node, one_after_the_other, words_of


class Later(Kind):
    """A call that is submitted, something else, and only then its result."""

    name = "later"
    weight = 6
    roles = ("meanwhile",)
    fewest = 1

    def make(self, maker: Maker) -> Node:
        behaviour = maker.behaviour(may_fail=ACTIVITY in maker.failures)
        return Node("later", (maker.inside().block(),), behaviour=behaviour)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        future = submit_call(node, value)
        value = await interpreter.run(node.children[0], value)
        return mix(value, await future)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return after_the_other(fates[0], Call().fate(node, ()))

    def smaller(self, node: Node) -> Iterator[Node]:
        yield Node("call", behaviour=node.behaviour)
        yield from super().smaller(node)


class Recalled(Kind):
    """A call that is submitted and called back: whatever comes of it is not looked at."""

    name = "recalled"
    weight = 3
    roles = ("meanwhile",)
    fewest = 1

    def make(self, maker: Maker) -> Node:
        meanwhile = maker.inside().node() if maker.rng.random() < 0.7 else NOTHING
        return Node("recalled", (meanwhile,), behaviour=maker.behaviour(may_fail=True))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        future = submit_call(node, value)
        value = await interpreter.run(node.children[0], value)
        future.cancel()
        await future.wait()
        if not future.done():
            raise AssertionError(f"{future!r} is not done after wait()")
        return value

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        longest_s = (node.behaviour or PLAIN).longest_s
        return replace(fates[0], instant=False, span=fates[0].span + longest_s)

    def smaller(self, node: Node) -> Iterator[Node]:
        yield Node("call", behaviour=node.behaviour)
        yield from super().smaller(node)


class Together(Kind):
    """Calls that go on by themselves, and one that waits for all of them, for each, or for the first."""

    name = "together"
    weight = 7
    fewest = 1
    ways = ("gather", "outcomes", "sorted", "as completed", "first")

    def make(self, maker: Maker) -> Node:
        within = maker.inside()
        call = within.kinds["call"]
        way = maker.rng.choice(("gather", "outcomes", "sorted") if maker.steady else self.ways)
        calls = within
        if way == "outcomes":
            calls = replace(within, failures=within.failures | {ACTIVITY})
        nodes = [call.make(calls) for _ in range(maker.rng.randint(2, 5))]
        if maker.steady and way == "outcomes":
            nodes = [msgspec.structs.replace(node, behaviour=_telling(node.behaviour or PLAIN)) for node in nodes]
        return Node("together", tuple(nodes), way=way)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        futures = [submit_call(child, mix(value, place)) for place, child in enumerate(node.children)]
        match node.way:
            case "gather":
                return mix(*await gather(*futures))
            case "outcomes":
                return mix(*map(_in_words, await outcomes(*futures)))
            case "first":
                winner = await first(*futures)
                for future in futures:
                    future.cancel()
                return await winner
            case _:
                results = [future.result() async for future in as_completed(futures)]
                return mix(*(sorted(results) if node.way == "sorted" else results))

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        together = one_after_the_other(fates)
        failing = [fate for fate in fates if fate.failures]
        fate = replace(
            together,
            # A task that is cancelled while it waits for futures just leaves.
            when_cancelled=together.failures,
            which=not failing or (len(failing) == 1 and failing[0].which),
            span=max((fate.span for fate in fates), default=0.0),
        )
        match node.way:
            case "outcomes":
                certain = fate.certain and all(one.which for one in fates)
                return replace(fate, certain=certain, failures=frozenset(), when_cancelled=frozenset(), which=True)
            case "gather" | "sorted":
                return fate
            case _:
                return replace(fate, certain=fate.certain and len(fates) < 2)


class Mapped(Kind):
    """One call for each of some items, a few at a time; nobody or everybody may fail."""

    name = "map"
    weight = 3
    is_leaf = True
    least = 1
    ways = ("", "tolerant")

    def make(self, maker: Maker) -> Node:
        way = maker.rng.choice(self.ways)
        behaviour = maker.behaviour(may_fail=way == "tolerant" or ACTIVITY in maker.failures)
        if maker.steady and way == "tolerant":
            behaviour = _telling(behaviour)
        number = maker.rng.randint(1, 7)
        maker.budget.nodes -= number // 3
        return Node("map", number=number, way=way, behaviour=behaviour)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        items = [mix(value, place) for place in range(node.number)]
        act = _Submitter(node.behaviour or PLAIN)
        if node.way == "tolerant":
            return mix(*map(_in_words, await durable_map(act, items, concurrency=3, tolerate="all")))
        return mix(*await durable_map(act, items, concurrency=2))

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        one = Call().fate(node, ())
        span = one.span * (1 + node.number // 2)
        if node.way == "tolerant":
            return Fate(certain=one.certain and one.which, span=span)
        which = one.which and (node.number < 2 or not one.failures)
        return replace(one, which=which, when_cancelled=one.failures, span=span)


@dataclass(frozen=True)
class _Submitter:
    """The activity of a behaviour, with the one parameter that maps want."""

    behaviour: Behaviour

    def submit(self, item: int) -> DurableFuture[int]:
        return self.behaviour.calls(work).submit(self.behaviour, item)


def submit_call(node: Node, value: int) -> DurableFuture[int]:
    """The call of a node, going on by itself."""
    return _Submitter(node.behaviour or PLAIN).submit(value)


def _telling(behaviour: Behaviour) -> Behaviour:
    """A behaviour of whose failure is known how it is worded."""
    if not behaviour.may_fail or behaviour.certain_failure:
        return behaviour
    return Behaviour("refuses", None, behaviour.seconds)


def after_the_other(meanwhile: Fate, call: Fate) -> Fate:
    """The fate of something that is done while a call goes on by itself, and whose result is waited for then."""
    both = one_after_the_other((meanwhile, call))
    # Whoever is cancelled while waiting for a future just leaves: the run owns the call.
    return replace(both, at_least=meanwhile.at_least, when_cancelled=meanwhile.when_cancelled | call.failures)


def _in_words(result: Any) -> int | str:
    return words_of(result) if isinstance(result, DurableFutureError) else int(result)


FUTURES: tuple[Kind, ...] = (Later(), Recalled(), Together(), Mapped())
