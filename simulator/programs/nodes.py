"""Programs as trees: what a node is, what is known of it without running it, and what every kind of node has to say.

A program passes one number on from node to node; whatever an activity returns becomes a part of it, so a result that
is lost, doubled or exchanged shows in the outcome.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec
import trio

from durablefuture_trio.authoring import workflow
from durablefuture_trio.errors import ActivityError, ChildWorkflowError
from simulator.programs.behaviours import PLAIN, Behaviour, make_behaviour
from simulator.programs.desk import Carried, Desk

if TYPE_CHECKING:
    from durablefuture_trio.authoring import WorkflowDefinition

CHILD = "child"
CONTINUED = "continued as new"
"""Kinds of exceptions that leave nodes, beside those of `_kinds`; the second is none that anybody handles."""

MOMENTS = (0.0, 0.05, 0.7, 3.0, 20.0, 400.0)
"""Few different ones, so that deadlines and timers coincide."""

MAX_DEPTH = 5


class Node(msgspec.Struct, frozen=True):
    """One step of a program. Which fields count depends on the kind.

    Attributes:
        kind: name in the table of kinds.
        children: in the order of the kind's roles.
        seconds: a duration or a limit.
        number: a count, or which of the program's shared objects.
        way: which variant of the kind.
        behaviour: of an activity call.
    """

    kind: str
    children: tuple[Node, ...] = ()
    seconds: float = 0.0
    number: int = 0
    way: str = ""
    behaviour: Behaviour | None = None

    def with_child(self, place: int, child: Node) -> Node:
        """The same node with another child there."""
        return msgspec.structs.replace(self, children=(*self.children[:place], child, *self.children[place + 1 :]))


NOTHING = Node("sequence")
"""The program of length zero."""


@dataclass(frozen=True)
class Fate:
    """What is known of a node whatever the timing, the losses and the kills.

    Attributes:
        certain: it fails in every case or in none; and if not, its value is always the same.
        failures: the kinds of exceptions that may leave it (more may be named than ever do).
        when_cancelled: likewise, if it is cancelled while it is at work; all of `failures` are in it.
        which: if it fails, always with the same exception.
        grouped: what leaves it may be in exception groups.
        instant: it waits for nothing outside: no time passes in it.
        at_least: seconds in timers that a cancellation can interrupt, before it ends otherwise than by failing.
        span: seconds it takes at most when nothing goes wrong outside, roughly.
    """

    certain: bool = True
    failures: frozenset[str] = frozenset()
    when_cancelled: frozenset[str] = frozenset()
    which: bool = True
    grouped: bool = False
    instant: bool = False
    at_least: float = 0.0
    span: float = 0.0


def one_after_the_other(fates: Sequence[Fate]) -> Fate:
    """The fate of a sequence."""
    return Fate(
        certain=all(fate.certain for fate in fates),
        failures=frozenset[str]().union(*(fate.failures for fate in fates)),
        when_cancelled=frozenset[str]().union(*(fate.when_cancelled for fate in fates)),
        which=all(fate.which for fate in fates),
        grouped=any(fate.grouped for fate in fates),
        instant=all(fate.instant for fate in fates),
        at_least=sum(fate.at_least for fate in fates),
        span=sum(fate.span for fate in fates),
    )


def beside_each_other(fates: Sequence[Fate]) -> Fate:
    """The fate of the children of a nursery, whose values are combined in the order of the children."""
    together = one_after_the_other(fates)
    # The first one that fails cancels the others.
    fails = bool(together.failures)
    return replace(
        together,
        failures=together.when_cancelled if fails else together.failures,
        which=not fails or (together.which and sum(bool(fate.when_cancelled) for fate in fates) == 1),
        grouped=bool(together.when_cancelled),
        at_least=max((fate.at_least for fate in fates), default=0.0),
        span=max((fate.span for fate in fates), default=0.0),
    )


def fate_of(kinds: dict[str, Kind], node: Node) -> Fate:
    """The fate of a tree."""
    kind = kinds[node.kind]
    fates = [
        fate_of_program(kinds, child) if place == kind.root else fate_of(kinds, child)
        for place, child in enumerate(node.children)
    ]
    return kind.fate(node, fates)


def fate_of_program(kinds: dict[str, Kind], tree: Node) -> Fate:
    """The fate of a whole program, whose chapters are runs one after the other."""
    if tree.kind == "chapters":
        return one_after_the_other([fate_of(kinds, child) for child in tree.children])
    return fate_of(kinds, tree)


@dataclass
class Budget:
    """What is left for a program being made."""

    nodes: int
    long_sleeps: int = 1


@dataclass(frozen=True)
class Maker:
    """What a node may be made of.

    Attributes:
        rng: decides.
        budget: of the whole program.
        kinds: the table.
        steady: only what is certain.
        failures: kinds of exceptions that may leave the node.
        calm: none may leave it when it is cancelled.
        depth: how deep it is.
        generation: how many programs it is inside of, whose child it is.
    """

    rng: Random
    budget: Budget
    kinds: dict[str, Kind]
    steady: bool
    failures: frozenset[str] = frozenset()
    calm: bool = False
    depth: int = 0
    generation: int = 0

    def inside(self, failures: Iterable[str] | None = None, *, calm: bool = False) -> Maker:
        """The maker of children."""
        allowed = self.failures if failures is None else frozenset(failures)
        return replace(self, depth=self.depth + 1, failures=allowed, calm=self.calm or calm)

    def of_child(self, failures: Iterable[str]) -> Maker:
        """The maker of a child's program."""
        return replace(self, depth=self.depth + 1, generation=self.generation + 1, failures=frozenset(failures))

    def program(self) -> Node:
        """A program."""
        if "chapters" in self.kinds and self.rng.random() < CHAPTERS:
            return Node("chapters", tuple(self.block() for _ in range(self.rng.randint(2, 3))))
        return self.block()

    def behaviour(self, *, may_fail: bool) -> Behaviour:
        """A behaviour for a call."""
        return make_behaviour(self.rng, steady=self.steady, may_fail=may_fail, calm=self.calm)

    def node(self) -> Node:
        """A node of any kind that fits."""
        leaf_only = self.depth >= MAX_DEPTH or self.budget.nodes <= 1
        fitting = [kind for kind in self.kinds.values() if kind.fits(self) and (kind.is_leaf or not leaf_only)]
        kind = self.rng.choices(fitting, [kind.weight for kind in fitting])[0]
        self.budget.nodes -= 1
        return kind.make(self)

    def block(self) -> Node:
        """One node, or a few in a row; rarely none."""
        length = self.rng.choices((0, 1, 2, 3), (1, 12, 8, 4))[0]
        if length == 1:
            return self.node()
        return Node("sequence", tuple(self.node() for _ in range(length)))

    def blocks(self, least: int, most: int) -> tuple[Node, ...]:
        """Some blocks beside each other; in a steady program one of them may fail in ways that others may not."""
        return tuple(self.block() for _ in range(self.rng.randint(least, most)))

    def instant(self) -> Node:
        """A node that waits for nothing outside."""
        one = Node("checkpoint")
        return self.rng.choice(
            (NOTHING, one, Node("sequence", (one, one)), Node("nursery", (one, NOTHING), way="ordered"))
        )

    def moment(self) -> float:
        """Some seconds."""
        drawn = self.rng.choices(MOMENTS, (4, 10, 10, 8, 4, 1))[0]
        if drawn == MOMENTS[-1]:
            self.budget.long_sleeps -= 1
            return drawn if self.budget.long_sleeps >= 0 else 3.0
        return drawn


CHAPTERS = 0.12
"""Share of the programs that continue as new."""


class Interpreter:
    """Runs a program.

    Attributes:
        desk: the messages of the run.
        program: the workflow that children are.

    Args:
        kinds: the table.
        further: the workflow that goes on when this one continues as new.
    """

    def __init__(
        self, kinds: dict[str, Kind], desk: Desk, program: WorkflowDefinition[[Node], int], further: Any
    ) -> None:
        self._kinds = kinds
        self._further = further
        self._tags = 0
        self.desk = desk
        self.program = program
        self.events: Final = [trio.Event() for _ in range(SHARED)]
        self.channels: Final = [trio.open_memory_channel[int](size) for size in range(SHARED)]

    async def run(self, node: Node, value: int) -> int:
        """Take the number through the node."""
        return await self._kinds[node.kind].run(self, node, value)

    def tag(self) -> str:
        """A tag for a message that is sent."""
        self._tags += 1
        return f"{self.desk.run_id}-{self._tags}"

    def go_on(self, tree: Node, value: int) -> NoReturn:
        """Continue as new with this program."""
        carried = Carried(value, self.desk.seen())
        self.desk.close()
        workflow.continue_as_new(tree, carried, workflow=self._further)


SHARED = 3
"""Events and channels that all parts of a program know by number."""


class Kind(ABC):
    """One kind of node. A new one is a subclass and an entry in the table.

    Attributes:
        name: of the kind.
        weight: how often it is drawn.
        is_leaf: it has no children.
        steady: it can be certain.
        raises: the kind of exception it needs leave for; empty: none.
        roles: what the first children are for; the last role holds for all that follow.
        fewest: children it needs; each further one may be dropped.
        ways: its variants, the simplest first.
        least: the smallest `number`.
        moments: whether `seconds` may be made smaller.
        root: which child is a program of its own, run by another workflow.
    """

    name: str
    weight: int = 1
    is_leaf: bool = False
    steady: bool = True
    raises: str = ""
    roles: tuple[str, ...] = ()
    fewest: int = 0
    ways: tuple[str, ...] = ("",)
    least: int = 0
    moments: bool = True
    root: int | None = None

    def fits(self, maker: Maker) -> bool:
        """Whether a node of this kind may be made here."""
        return (self.steady or not maker.steady) and (not self.raises or self.raises in maker.failures)

    @abstractmethod
    def make(self, maker: Maker) -> Node:
        """A random node."""

    @abstractmethod
    async def run(self, interpreter: Interpreter, node: Node, value: int) -> int:
        """What the node does in the workflow."""

    @abstractmethod
    def fate(self, node: Node, fates: Sequence[Fate]) -> Fate:
        """What is known of the node, from what is known of its children."""

    def describe(self, node: Node) -> str:
        """The node without its children, in a few words."""
        words = [self.name]
        if node.way:
            words.append(node.way)
        if node.number:
            words.append(f"#{node.number}")
        if node.seconds or self.name == "sleep":
            words.append(f"{node.seconds:g} s")
        if node.behaviour is not None:
            words.append(f"({node.behaviour.describe()})")
        return " ".join(words)

    def role(self, place: int) -> str:
        """What the child there is for; empty: nothing to be said."""
        return self.roles[min(place, len(self.roles) - 1)] if self.roles else ""

    def smaller(self, node: Node) -> Iterator[Node]:
        """Simpler nodes to try in place of this one, the boldest first. Its children are not looked into."""
        yield from node.children
        for place, child in enumerate(node.children):
            if len(node.children) > self.fewest:
                rest = (*node.children[:place], *node.children[place + 1 :])
                yield msgspec.structs.replace(node, children=rest)
            elif child != NOTHING:
                yield node.with_child(place, NOTHING)
        if node.behaviour is not None and node.behaviour != PLAIN:
            yield msgspec.structs.replace(node, behaviour=PLAIN)
        if node.way != self.ways[0]:
            yield msgspec.structs.replace(node, way=self.ways[0])
        if self.moments and node.seconds in MOMENTS:
            for shorter in MOMENTS[: MOMENTS.index(node.seconds)]:
                yield msgspec.structs.replace(node, seconds=shorter)
        for number in range(self.least, node.number):
            yield msgspec.structs.replace(node, number=number)

    def measure(self, node: Node) -> int:
        """The size of the node without its children; each of `smaller` makes the sum over the tree less."""
        if node == NOTHING:
            return 1
        return (
            (2 if self.name == "sequence" else 40)
            + node.number
            + (MOMENTS.index(node.seconds) if node.seconds in MOMENTS else 0)
            + (self.ways.index(node.way) if node.way in self.ways else 0)
            + (0 if node.behaviour is None else node.behaviour.complexity)
        )


def single(error: BaseException) -> BaseException:
    """The exception inside groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def words_of(error: BaseException) -> str:
    """An exception in words that hold for every way to get there: without numbers of attempts."""
    error = single(error)
    if isinstance(error, BaseExceptionGroup):
        return " & ".join(sorted(words_of(member) for member in error.exceptions))
    if isinstance(error, ActivityError | ChildWorkflowError):
        cause = error.cause
        said = "" if cause is None else f": {words_of(cause)}"
        return f"{type(error).__name__} {error.reason}{said}"
    return _named(error)


def _named(error: BaseException) -> str:
    name = getattr(error, "type", None)
    return f"{name if isinstance(name, str) else type(error).__name__}: {error}"
