"""The kinds of nodes that deal with other workflows and with other runs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
import trio

from durablefuture_trio.authoring import ChildWorkflow, workflow
from durablefuture_trio.errors import ChildWorkflowError, WorkflowError, WorkflowNotFoundError
from simulator.programs.behaviours import mix
from simulator.programs.desk import SIGNALS
from simulator.programs.kinds import ACTIVITY, APPLICATION
from simulator.programs.kinds_futures import after_the_other
from simulator.programs.nodes import (
    CHILD,
    CONTINUED,
    NOTHING,
    Fate,
    Interpreter,
    Kind,
    Maker,
    Node,
    one_after_the_other,
)

MAX_GENERATIONS = 2
"""Children may have children, and those none."""

KIDS = 3
"""So many ids of children are given by programs, and shared by all programs of a life."""

TARGETS = 4
"""So many workflow ids programs send signals and cancels to."""


def kid_id(number: int) -> str:
    """The id of a child that was given one."""
    return f"kid{number}"


class Child(Kind):
    """A child workflow that is waited for: at once, or after something else, or with a signal on the way."""

    name = "child"
    weight = 6
    roles = ("of the child", "meanwhile")
    fewest = 2
    ways = ("awaited", "submitted", "nudged", "recalled")
    root = 0

    def fits(self, maker: Maker) -> bool:
        return super().fits(maker) and maker.generation < MAX_GENERATIONS

    def make(self, maker: Maker) -> Node:
        way = maker.rng.choice(self.ways)
        fails = frozenset({ACTIVITY, APPLICATION, CHILD} if CHILD in maker.failures else ())
        if way == "recalled":
            inside = replace(maker.of_child(frozenset({ACTIVITY, APPLICATION})), steady=False, calm=False)
        else:
            inside = maker.of_child(fails)
        meanwhile = NOTHING if way in ("awaited", "nudged") else maker.inside().node()
        number = 0
        if not maker.steady and CHILD in maker.failures and maker.rng.random() < 0.4:
            number = maker.rng.randint(1, KIDS)
        return Node("child", (inside.program(), meanwhile), number=number, way=way)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        tree, meanwhile = node.children
        if node.way == "awaited" and not node.number:
            value = await interpreter.run(meanwhile, value)
            return mix(value, await interpreter.program(tree))
        child = _started(interpreter, node, tree)
        if node.way == "nudged":
            with suppress(WorkflowNotFoundError):
                await child.signal(SIGNALS["nudge"], interpreter.tag())
        value = await interpreter.run(meanwhile, value)
        if node.way == "recalled":
            child.cancel()
            await child.wait()
            return value
        return mix(value, await child)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        child, meanwhile = fates
        if node.way == "recalled":
            # Its id may be in use, which nobody is told here.
            return replace(meanwhile, instant=False, span=meanwhile.span + child.span)
        call = Fate(
            certain=child.certain and not node.number,
            failures=frozenset({CHILD} if child.failures or node.number else ()),
            when_cancelled=frozenset({CHILD} if child.when_cancelled or node.number else ()),
            which=child.which and not node.number,
            span=child.span,
        )
        if node.way == "awaited" and not node.number:
            return one_after_the_other((meanwhile, call))
        both = after_the_other(meanwhile, call)
        # Waiting for its start, and for a signal to be stored, may fail like waiting for its end.
        return replace(both, when_cancelled=both.when_cancelled | call.failures, instant=False)


class LeftOpen(Kind):
    """A child workflow that nobody waits for: what becomes of it at the end of its parent is the way."""

    name = "left open"
    weight = 4
    roles = ("of the child", "meanwhile")
    fewest = 2
    ways = ("terminate", "cancel", "abandon")
    root = 0

    def fits(self, maker: Maker) -> bool:
        return super().fits(maker) and maker.generation < MAX_GENERATIONS

    def make(self, maker: Maker) -> Node:
        # Nothing of it is known here, so it may be anything.
        inside = replace(maker.of_child(frozenset({ACTIVITY, APPLICATION, CHILD})), steady=False, calm=False)
        meanwhile = maker.inside().node() if maker.rng.random() < 0.5 else NOTHING
        number = maker.rng.choice((0, 0, 0, maker.rng.randint(1, KIDS)))
        return Node("left open", (inside.program(), meanwhile), number=number, way=maker.rng.choice(self.ways))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        tree, meanwhile = node.children
        child = _started(interpreter, node, tree, parent_close=node.way)
        if node.way != "terminate" and not node.number:
            with suppress(ChildWorkflowError):  # it may have failed before its start was heard of
                await child.started()
        return await interpreter.run(meanwhile, value)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return replace(fates[1], instant=False, span=fates[1].span + fates[0].span)


class Tell(Kind):
    """A signal or a cancel to another workflow, or to itself, whether there is one or not."""

    name = "tell"
    weight = 4
    is_leaf = True
    ways = ("nudge", "errand", "parcel", "cancel", "nudge kid", "cancel kid")

    def make(self, maker: Maker) -> Node:
        way = maker.rng.choices(self.ways, (5, 3, 3, 1, 2, 1))[0]
        return Node("tell", number=maker.rng.randrange(TARGETS), way=way)

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        what, _, whom = node.way.partition(" ")
        other = workflow.handle(kid_id(node.number) if whom else f"w{node.number}")
        with suppress(WorkflowNotFoundError):
            if what == "cancel":
                await other.cancel(f"told by {workflow.info().workflow_id}")
            else:
                await other.signal(SIGNALS[what], interpreter.tag())
        return value

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return Fate(span=0.1)


class Watch(Kind):
    """The end of another workflow is waited for, but not for ever. Told or not, what came of that."""

    name = "watch"
    weight = 3
    is_leaf = True
    ways = ("ignored", "told")

    def make(self, maker: Maker) -> Node:
        way = "ignored" if maker.steady else maker.rng.choice(self.ways)
        return Node("watch", number=maker.rng.randrange(TARGETS), way=way, seconds=maker.moment())

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        told: int | str = "in vain"
        if workflow.info().workflow_id != f"w{node.number}":
            with trio.move_on_after(node.seconds):
                try:
                    told = await workflow.handle(f"w{node.number}").result(int)
                except WorkflowError as error:
                    told = type(error).__name__
        return value if node.way == "ignored" else mix(value, told)

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return Fate(certain=node.way == "ignored", span=node.seconds)


class Chapters(Kind):
    """Parts of which each is a run of its own. What stands after it is only for the last one: the run that goes on
    knows nothing of where its predecessor was."""

    name = "chapters"
    weight = 1
    steady = False
    raises = CONTINUED
    fewest = 1

    def make(self, maker: Maker) -> Node:
        return Node("chapters", maker.inside().blocks(2, 3))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        value = await interpreter.run(node.children[0], value)
        if len(node.children) > 1:
            interpreter.go_on(msgspec.structs.replace(node, children=node.children[1:]), value)
        return value

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        if len(fates) == 1:
            return fates[0]
        whole = one_after_the_other(fates)
        # At the root of a program it is a sequence; anywhere else it takes the rest of the run with it.
        gone = frozenset({CONTINUED})
        return replace(
            whole, certain=False, failures=whole.failures | gone, when_cancelled=whole.when_cancelled | gone,
            which=False, at_least=0.0,
        )  # fmt: skip


class Patched(Kind):
    """A change of the code that every run knows."""

    name = "patched"
    weight = 3
    is_leaf = True
    ways = ("patched", "deprecated")

    def make(self, maker: Maker) -> Node:
        return Node("patched", number=maker.rng.randrange(4), way=maker.rng.choice(self.ways))

    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        patch = f"{node.way}-{node.number}"
        if node.way == "deprecated":
            workflow.deprecate_patch(patch)
        elif not workflow.patched(patch):
            raise AssertionError(f"{patch} is not known to a run that was begun with it")
        return value

    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        return Fate(instant=True)


def _started(interpreter: Interpreter, node: Node, tree: Node, **options: Any) -> ChildWorkflow[int]:
    if node.number:
        options["id"] = kid_id(node.number)
    if not options:
        return interpreter.program.submit(tree)
    return workflow.start_child(interpreter.program, tree, **options)


WORKFLOWS: tuple[Kind, ...] = (Child(), LeftOpen(), Tell(), Watch(), Chapters(), Patched())
