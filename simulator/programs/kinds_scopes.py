"""The kinds of nodes that open scopes: limits, compensations, shields, handlers, options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import trio

from durablefuture_trio.authoring import activity_options
from durablefuture_trio.errors import ActivityError, ChildWorkflowError
from simulator.programs.behaviours import mix
from simulator.programs.kinds import ACTIVITY, SLOW
from simulator.programs.nodes import (
    CHILD,
    MOMENTS,
    NOTHING,
    Fate,
    Interpreter,
    Kind,
    Maker,
    Node,
    fate_of,
    one_after_the_other,
    words_of,
)

CALLS = frozenset({ACTIVITY, CHILD})


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
                failures = body.when_cancelled | compensation.failures
                return replace(limited, certain=False, instant=False, at_least=0.0, failures=failures)


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
                slow = frozenset({SLOW})
                return Fate(failures=slow, when_cancelled=slow, at_least=node.seconds, span=limited.span)
            case False:
                return replace(body, span=limited.span)
            case None:
                slow = frozenset(() if caught else {SLOW})
                return replace(
                    limited, certain=False, instant=False, at_least=0.0,
                    failures=body.when_cancelled | handler.failures | slow,
                    when_cancelled=limited.when_cancelled | slow,
                )  # fmt: skip


class Guarded(Kind):
    """``try: ... except`` for calls and children that fail, the plain one or the one for groups."""

    name = "try"
    weight = 7
    roles = ("body", "if a call failed")
    fewest = 2
    ways = ("except*", "except* and tell", "except")

    def make(self, maker: Maker) -> Node:
        body = maker.inside(CALLS).block()
        way = maker.rng.choice(self.ways)
        if maker.steady:
            fate = fate_of(maker.kinds, body)
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
            except (ActivityError, ChildWorkflowError):
                words.append("failed")
        else:
            try:
                value = await interpreter.run(body, value)
            except* (ActivityError, ChildWorkflowError) as group:
                words.append(words_of(group) if node.way == "except* and tell" else "failed")
        return await interpreter.run(handler, mix(value, *words)) if words else value

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        body, handler = fates
        both = one_after_the_other(fates)
        caught = frozenset(() if node.way == "except" and body.grouped else CALLS)
        when_cancelled = (body.when_cancelled - caught) | handler.when_cancelled
        # What fails because it is cancelled is caught here as well, and the rest of the body left out.
        at_least = 0.0 if body.when_cancelled else body.at_least
        if not body.failures:
            return replace(body, at_least=at_least, when_cancelled=when_cancelled, span=both.span)
        escaping = body.failures - caught
        certain = both.certain and (body.which or (node.way != "except* and tell" and body.failures <= CALLS))
        return replace(
            both, certain=certain, failures=escaping | handler.failures, grouped=body.grouped or handler.grouped,
            which=handler.which and (body.which or not escaping), when_cancelled=when_cancelled, at_least=at_least,
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
        body, compensation = fates
        # Nothing cancels the compensation from outside.
        when_cancelled = body.when_cancelled | compensation.failures
        return replace(one_after_the_other(fates), at_least=body.at_least, when_cancelled=when_cancelled)


class Shielded(Kind):
    """A body that cancellation does not reach."""

    name = "shield"
    weight = 2
    fewest = 1

    def make(self, maker: Maker) -> Node:
        return Node("shield", (maker.inside().block(),))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        with trio.CancelScope(shield=True):
            value = await interpreter.run(node.children[0], value)
        return mix(value, "shielded")

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        # Nothing cancels it from outside, but for what it cancels itself.
        return replace(fates[0], at_least=0.0, when_cancelled=fates[0].failures)


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


def _cut(body: Fate, seconds: float) -> bool | None:
    """Whether a limit cuts a body short; None: that depends.

    The body must not fail, nor when it is cancelled: an attempt may have an error to tell all the same. A timer that
    fires late finds the limit passed as well, and the outer scope wins; results of calls may come before it or after.
    """
    if body.instant and body.certain and not body.failures and seconds > 0:
        return False
    return True if body.at_least > seconds and not body.when_cancelled else None


def _limited(maker: Maker) -> tuple[Node, float]:
    """A body and the seconds that it is given."""
    if not maker.steady:
        return maker.inside().block(), maker.moment()
    if maker.rng.random() < 0.25:
        return maker.inside().instant(), maker.rng.choice(MOMENTS[1:4])
    place = maker.rng.randrange(4)
    longer = Node("sleep", seconds=maker.rng.choice(MOMENTS[place + 1 : 5]))
    other = maker.inside((), calm=True).block()
    children = (other, longer) if maker.rng.random() < 0.5 else (longer, other)
    if maker.rng.random() < 0.5:
        return Node("sequence", children), MOMENTS[place]
    return Node("nursery", children, way="ordered"), MOMENTS[place]


SCOPES: tuple[Kind, ...] = (MoveOnAfter(), FailAfter(), Guarded(), Compensated(), Shielded(), Options())
