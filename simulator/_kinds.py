"""The kinds of nodes that call, wait, fail, and open scopes and nurseries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import trio

from durablefuture_trio.authoring import activity_options, workflow
from durablefuture_trio.errors import ActivityError, ApplicationError
from simulator._behaviours import PLAIN, make_behaviour, mix, tally, work
from simulator._nodes import (
    MOMENTS,
    NOTHING,
    Fate,
    Interpreter,
    Kind,
    Maker,
    Node,
    beside_each_other,
    one_after_the_other,
    words_of,
)

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
        behaviour = make_behaviour(maker.rng, steady=maker.steady, may_fail=ACTIVITY in maker.failures)
        return Node("call", behaviour=behaviour)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        behaviour = node.behaviour or PLAIN
        return await behaviour.calls(work)(behaviour, value)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        behaviour = node.behaviour or PLAIN
        return Fate(
            certain=behaviour.certain,
            failures=frozenset({ACTIVITY} if behaviour.may_fail else ()),
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
        behaviour = make_behaviour(maker.rng, steady=maker.steady, may_fail=False)
        return Node("fan out", tuple(calls), behaviour=behaviour)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        results = await _side_by_side(interpreter, node.children, value)
        behaviour = node.behaviour or PLAIN
        return await behaviour.calls(tally)(behaviour, [result for _, result in sorted(results)])

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        last = Call().fate(node, ())
        return one_after_the_other((beside_each_other(fates), last))


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
        return Fate(failures=frozenset({APPLICATION}), instant=True)


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
        return replace(fate, grouped=bool(fate.failures))


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
        return replace(beside_each_other(fates), certain=False, at_least=min(fate.at_least for fate in fates))


class MoveOnAfter(Kind):
    """A limit for the body, and a compensation if it was cut short."""

    name = "move_on_after"
    weight = 8
    roles = ("body", "if cut short")
    fewest = 2

    def make(self, maker: Maker) -> Node:
        body, seconds = _limited(maker)
        compensation = maker.inside().node() if maker.rng.random() < 0.7 else NOTHING
        return Node("move_on_after", (body, compensation), seconds=seconds)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        body, compensation = node.children
        result = mix(value, "cut short")
        with trio.move_on_after(node.seconds) as scope:
            result = await interpreter.run(body, value)
        return await interpreter.run(compensation, result) if scope.cancelled_caught else result

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        body, compensation = fates
        limited = replace(one_after_the_other(fates), span=min(body.span, node.seconds + 30) + compensation.span)
        match _cut(body, node.seconds):
            case True:
                return replace(
                    compensation, at_least=node.seconds + compensation.at_least, instant=False, span=limited.span
                )
            case False:
                return replace(body, span=limited.span)
            case None:
                return replace(limited, certain=False, instant=False, at_least=0.0)


class FailAfter(Kind):
    """A limit for the body that raises, and somebody who may catch it."""

    name = "fail_after"
    weight = 4
    roles = ("body", "if too slow")
    fewest = 2
    ways = ("caught", "not caught")

    def make(self, maker: Maker) -> Node:
        body, seconds = _limited(maker)
        way = maker.rng.choice(self.ways) if SLOW in maker.failures else "caught"
        handler = maker.inside().node() if way == "caught" and maker.rng.random() < 0.5 else NOTHING
        return Node("fail_after", (body, handler), seconds=seconds, way=way)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        body, handler = node.children
        try:
            with trio.fail_after(node.seconds):
                return await interpreter.run(body, value)
        except trio.TooSlowError:
            if node.way != "caught":
                raise
        return await interpreter.run(handler, mix(value, "too slow"))

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        body, handler = fates
        caught = node.way == "caught"
        limited = replace(one_after_the_other(fates), span=min(body.span, node.seconds + 30) + handler.span)
        match _cut(body, node.seconds):
            case True if caught:
                return replace(handler, at_least=node.seconds + handler.at_least, instant=False, span=limited.span)
            case True:
                return Fate(failures=frozenset({SLOW}), at_least=node.seconds, span=limited.span)
            case False:
                return replace(body, span=limited.span)
            case None:
                failures = limited.failures | ({SLOW} if not caught else set())
                return replace(limited, certain=False, instant=False, at_least=0.0, failures=failures)


class Guarded(Kind):
    """``try: ... except ActivityError``, the plain one or the one for groups."""

    name = "try"
    weight = 7
    roles = ("body", "except ActivityError")
    fewest = 2
    ways = ("except*", "except* and tell", "except")

    def make(self, maker: Maker) -> Node:
        body = maker.inside({ACTIVITY}).block()
        way = maker.rng.choice(self.ways)
        if maker.steady:
            known = maker.kinds[body.kind]
            fate = known.fate(body, [_fate(maker, child) for child in body.children])
            if fate.grouped and ACTIVITY not in maker.failures:
                way = "except*"
            if way == "except* and tell" and not fate.which:
                way = "except*"
        handler = maker.inside().node() if maker.rng.random() < 0.5 else NOTHING
        return Node("try", (body, handler), way=way)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        body, handler = node.children
        words: list[str] = []
        if node.way == "except":
            try:
                return await interpreter.run(body, value)
            except ActivityError:
                words.append("failed")
        else:
            try:
                value = await interpreter.run(body, value)
            except* ActivityError as group:
                words.append(words_of(group) if node.way == "except* and tell" else "failed")
        return await interpreter.run(handler, mix(value, *words)) if words else value

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        body, handler = fates
        both = one_after_the_other(fates)
        if not body.failures:
            return replace(body, span=both.span)
        escaping = body.failures if node.way == "except" and body.grouped else body.failures - {ACTIVITY}
        certain = both.certain and (body.which or (node.way != "except* and tell" and body.failures <= {ACTIVITY}))
        return replace(
            both, certain=certain, failures=escaping | handler.failures, grouped=bool(escaping) or handler.grouped,
            which=handler.which and (body.which or not escaping), instant=both.instant, at_least=0.0,
        )  # fmt: skip


class Compensated(Kind):
    """A compensation that no cancellation stops: always, or only if the body was cancelled."""

    name = "compensated"
    weight = 5
    roles = ("body", "shielded")
    fewest = 2
    ways = ("finally", "when cancelled")

    def make(self, maker: Maker) -> Node:
        compensation = maker.inside(() if maker.steady else None).node()
        return Node("compensated", (maker.inside().block(), compensation), way=maker.rng.choice(self.ways))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        body, compensation = node.children
        if node.way == "finally":
            try:
                value = await interpreter.run(body, value)
            finally:
                with trio.CancelScope(shield=True):
                    value = await interpreter.run(compensation, value)
            return value
        try:
            return await interpreter.run(body, value)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await interpreter.run(compensation, value)
            raise

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return replace(one_after_the_other(fates), at_least=fates[0].at_least)


class Shielded(Kind):
    """A body that cancellation does not reach."""

    name = "shield"
    weight = 2
    fewest = 1

    def make(self, maker: Maker) -> Node:
        return Node("shield", (maker.inside().block(),))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        with trio.CancelScope(shield=True):
            return await interpreter.run(node.children[0], value)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return replace(fates[0], at_least=0.0)


class Options(Kind):
    """Options for all calls of the body."""

    name = "options"
    weight = 3
    fewest = 1
    ways = ("start_to_close", "abandon_on_cancel")
    moments = False

    def make(self, maker: Maker) -> Node:
        # Above the longest attempt there is, or calls with unlimited attempts would never end.
        return Node("options", (maker.inside().block(),), seconds=45.0, way=maker.rng.choice(self.ways))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        if node.way == "abandon_on_cancel":
            with activity_options(abandon_on_cancel=True):
                return await interpreter.run(node.children[0], value)
        with activity_options(start_to_close_timeout=node.seconds):
            return await interpreter.run(node.children[0], value)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return fates[0]


async def _side_by_side(interpreter: Interpreter, children: Sequence[Node], value: int) -> list[tuple[int, int]]:
    """The place and the value of each child, in the order in which they were done."""
    results: list[tuple[int, int]] = []

    async def runner(place: int, child: Node) -> None:
        results.append((place, await interpreter.run(child, mix(value, place))))

    async with trio.open_nursery() as nursery:
        for place, child in enumerate(children):
            nursery.start_soon(runner, place, child)
    return results


def _cut(body: Fate, seconds: float) -> bool | None:
    """Whether a limit cuts a body short; None: that depends.

    The body must not fail: an attempt that is cancelled may fail all the same. A timer that fires late finds the
    limit passed as well, and the outer scope wins; results of calls may come before it or after.
    """
    if body.failures:
        return None
    if body.instant and body.certain and seconds > 0:
        return False
    return True if body.at_least > seconds else None


def _limited(maker: Maker) -> tuple[Node, float]:
    """A body and the seconds that it is given."""
    if not maker.steady:
        return maker.inside().block(), maker.moment()
    if maker.rng.random() < 0.25:
        return maker.inside().instant(), maker.rng.choice(MOMENTS[1:4])
    place = maker.rng.randrange(4)
    longer = Node("sleep", seconds=maker.rng.choice(MOMENTS[place + 1 : 5]))
    other = maker.inside(()).block()
    children = (other, longer) if maker.rng.random() < 0.5 else (longer, other)
    if maker.rng.random() < 0.5:
        return Node("sequence", children), MOMENTS[place]
    return Node("nursery", children, way="ordered"), MOMENTS[place]


def _fate(maker: Maker, node: Node) -> Fate:
    return maker.kinds[node.kind].fate(node, [_fate(maker, child) for child in node.children])


BASIC: tuple[Kind, ...] = (
    Sequence_(), Call(), FanOut(), Sleep(), Checkpoint(), Dice(), Lottery(), Raise(), Nursery(), Start(), Race(),
    MoveOnAfter(), FailAfter(), Guarded(), Compensated(), Shielded(), Options(),
)  # fmt: skip
