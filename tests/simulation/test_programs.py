"""Random workflow programs: made from a seed alone, replayable, and ending as is said of them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from durablefuture_trio import codec
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine.commands import (
    CancelActivity,
    CancelChild,
    Command,
    ContinueAsNew,
    RequestExternal,
    ScheduleActivity,
    StartChild,
)
from durablefuture_trio.errors import ApplicationError
from durablefuture_trio.history.events import (
    TERMINAL_EVENTS,
    ActivityCompleted,
    ActivityFailed,
    CancelRequested,
    ChildCompleted,
    ChildFailed,
    FailureReason,
    SignalReceived,
    UpdateAccepted,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowStarted,
)
from durablefuture_trio.ports.frames import Loaded
from durablefuture_trio.sandbox._host import ReplayHost
from simulator.oracle import Outcome
from simulator.programs import (
    DEFINITIONS,
    KINDS,
    Behaviour,
    Node,
    Program,
    describe,
    expected_outcome,
    generate,
    measure,
    outcome_of,
    plan_of,
    smaller,
)
from simulator.programs.behaviours import ACTIVITIES, RECIPES
from simulator.programs.desk import SIGNALS, UPDATES, Order
from simulator.programs.nodes import NOTHING
from tests._support.sandbox import CODE_HASH, START, Story

SEEDS = range(150)
MAX_STIMULI = 3000


class RandomWorld:
    """Runs a program to its end: answers come in any order, at any time, with every loss there may be, and messages
    when nobody waits for them.

    Args:
        falsify: what becomes of each result.
        is_disturbed: somebody may cancel it.
    """

    def __init__(self, program: Program, seed: object, *, falsify: int = 0, is_disturbed: bool = False) -> None:
        self.seed = seed
        self.rng = Random(f"world {seed}")
        self.host = new_host()
        self.stories = [Story(self.host, "program", [program.tree], run_id=f"run-{seed}")]
        self.calls: dict[int, tuple[str, tuple[Any, ...]]] = {}
        self.children: dict[int, tuple[Program, bool]] = {}
        self.externals: set[int] = set()
        self.cancelled: set[int] = set()
        self.falsify = falsify
        self.may_be_cancelled = is_disturbed
        self.talked = 0

    @property
    def story(self) -> Story:
        """Of the run that is open."""
        return self.stories[-1]

    def live(self) -> Outcome:
        rng = self.rng
        self._take(self.story.start())
        for _ in range(MAX_STIMULI):
            if self.has_ended:
                return outcome_of(self.story.events[-1])
            if rng.random() < 0.05:
                self._forget()
            if rng.random() < 0.03:
                self._take(self._talk())
                continue
            waiting = [*self.calls, *self.children, *self.externals]
            moves = [*sorted(waiting), *([0] if self.story.wake_at is not None else [])]
            assert moves, f"waits for nothing: {self.story.events[-1]}"
            call = rng.choice(moves)
            after = rng.choice((0.0, 0.0, 0.05, 0.7, 4.0, 60.0))
            if call == 0:
                self._take(self.story.fire(late=rng.choice((0.0, 0.0, 0.5, 3.0, 30.0))))
            elif call in self.calls:
                self._take(self._answer(call, after))
            elif call in self.children:
                self._take(self._answer_child(call, after))
            else:
                self._take(self._answer_external(call))
        raise AssertionError("no end")

    @property
    def has_ended(self) -> bool:
        return isinstance(self.story.events[-1], TERMINAL_EVENTS)

    def replays(self) -> None:
        """The whole history, in another host."""
        with_another = new_host()
        for story in self.stories:
            answer = story.replay(with_another)
            assert isinstance(answer, Loaded), answer
            assert not answer.unmatched, answer
        with_another.close()

    def _forget(self) -> None:
        story = self.story
        story.host.close()  # type: ignore[attr-defined]  # it is a replay host
        story.host = self.host = new_host()
        answer = story.replay()
        assert isinstance(answer, Loaded), answer
        assert (answer.unmatched, answer.wake_at) == ((), story.wake_at), answer

    def _take(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case ScheduleActivity():
                    hints = ACTIVITIES[command.name].parameter_hints
                    self.calls[command.call] = (command.name, codec.decode_arguments(command.arguments, hints))
                case StartChild():
                    (tree,) = codec.decode_arguments(command.arguments, (Node,))
                    self.children[command.call] = (Program(tree), False)
                case RequestExternal():
                    self.externals.add(command.call)
                case CancelActivity() | CancelChild():
                    self.cancelled.add(command.call)
                case ContinueAsNew():
                    self._go_on(command)
                case _:
                    pass

    def _go_on(self, wish: ContinueAsNew) -> None:
        before = self.story
        for waiting in (self.calls, self.children, self.externals, self.cancelled):
            waiting.clear()
        story = Story(self.host, wish.workflow, run_id=f"{before.run_id}+", at=before.at)
        self.stories.append(story)
        started = msgspec.structs.replace(
            story.started(),
            arguments=wish.arguments,
            continued_from=before.run_id,
            signals=wish.signals,
            updates=wish.updates,
            cancel_reason=self._cancel_reason(before),
        )
        self._take(story.apply(started))

    @staticmethod
    def _cancel_reason(story: Story) -> str | None:
        first = story.events[0]
        was_cancelled = isinstance(first, WorkflowStarted) and first.cancel_reason is not None
        return "no" if was_cancelled or any(isinstance(it, CancelRequested) for it in story.events) else None

    def _talk(self) -> list[Command]:
        """Something comes that nobody has waited for."""
        story, rng = self.story, self.rng
        self.talked += 1
        tag = f"{self.seed}-{self.talked}"
        if self.may_be_cancelled and rng.random() < 0.3:
            self.may_be_cancelled = False
            return story.apply(CancelRequested(id=story.next_id, at=story.at, reason="no"))
        if rng.random() < 0.6:
            name, arguments = rng.choice(tuple(SIGNALS)), codec.encode_arguments((tag,))
            return story.apply(SignalReceived(id=story.next_id, at=story.at, name=name, arguments=arguments))
        order = Order(tag, rng.choice(("carried out", "refused", "failing")), rng.choice((None, Behaviour())))
        name, arguments = rng.choice(tuple(UPDATES)), codec.encode_arguments((order,))
        return story.apply(UpdateAccepted(id=story.next_id, at=story.at, update_id=tag, name=name, arguments=arguments))

    def _answer(self, call: int, after: float) -> list[Command]:
        name, arguments = self.calls.pop(call)
        behaviour: Behaviour = arguments[0]
        story, rng = self.story, self.rng
        if call in self.cancelled and rng.random() < 0.8:
            if behaviour.how == "fails" and rng.random() < 0.7:
                # An error that would have been followed by another attempt.
                return self._fail(call, "error", Failure(type="Failed", message="no"), after)
            return story.cancelled(call, after=after)
        if behaviour.certain_failure:
            error = plan_of(name, arguments, 0).error
            assert error is not None
            return self._fail(call, "error", codec.failure_of(error), after)
        if behaviour.always_fails or (behaviour.bounded and rng.random() < 0.5):
            reasons: tuple[FailureReason, ...] = ("error", "lost", "crashed", "timed_out")
            return self._fail(call, rng.choice(reasons), Failure(type="Failed", message="no"), after)
        result = result_of(ACTIVITIES[name].fn(*arguments)) + self.falsify
        return story.complete(call, result, after=after)

    def _fail(self, call: int, reason: FailureReason, failure: Failure, after: float) -> list[Command]:
        story = self.story
        at, attempt = story.at + after, self.rng.randint(1, 5)
        return story.apply(
            ActivityFailed(id=story.next_id, at=at, activity_id=call, attempt=attempt, reason=reason, failure=failure)
        )

    def _answer_child(self, call: int, after: float) -> list[Command]:
        """Its start, or (in a world of its own) its end."""
        story, (program, has_started) = self.story, self.children[call]
        if not has_started and self.rng.random() < 0.8:
            self.children[call] = (program, True)
            return story.child_started(call, after=after)
        del self.children[call]
        world = RandomWorld(program, f"{self.seed}/{call}", falsify=self.falsify, is_disturbed=call in self.cancelled)
        world.live()
        world.host.close()
        end = world.story.events[-1]
        event_id, at = story.next_id, story.at + after
        if isinstance(end, WorkflowCompleted):
            return story.apply(ChildCompleted(id=event_id, at=at, call=call, result=end.result))
        if isinstance(end, WorkflowFailed):
            return story.apply(ChildFailed(id=event_id, at=at, call=call, how="failed", failure=end.failure))
        return story.child_failed(call, how="cancelled", error="WorkflowCancelledError", after=after)

    def _answer_external(self, call: int) -> list[Command]:
        self.externals.discard(call)
        is_unknown = self.rng.random() < 0.4
        unknown = Failure(type="WorkflowNotFoundError", message="there is none")
        return self.story.external_resolved(call, unknown if is_unknown else None)


def new_host() -> ReplayHost:
    return ReplayHost(Registry.of(DEFINITIONS).workflows, strict_code=CODE_HASH)


def result_of(coroutine: Coroutine[Any, Any, int]) -> int:
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    result: int = stop.value.value
    return result


def nodes_of(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from nodes_of(child)


def call(behaviour: Behaviour | None = None) -> Node:
    return Node("call", behaviour=behaviour or Behaviour())


def digest(seeds: range) -> str:
    found = hashlib.sha256()
    for seed in seeds:
        program = generate(Random(seed), kinds=KINDS)
        found.update(codec.encode_value(program.tree).data)
        found.update(repr(expected_outcome(program)).encode())
    return found.hexdigest()


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_program_and_its_expected_outcome_are_functions_of_the_seed(hash_seed: str) -> None:
    there = subprocess.run(
        [sys.executable, "-c", "from tests.simulation.test_programs import digest; print(digest(range(60)))"],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert there.stdout.strip() == digest(range(60))


def test_deterministic_programs_end_as_expected_in_every_world_and_replay() -> None:
    ends: Counter[str] = Counter()
    for seed in SEEDS:
        program = generate(Random(seed), deterministic=True, kinds=KINDS)
        assert program.deterministic, describe(program)
        how, value = expected_outcome(program)
        for variant in range(2):
            world = RandomWorld(program, seed + 1000 * variant)
            outcome = world.live()
            world.replays()
            world.host.close()
            assert outcome == (how, outcome[1] if value is None else value), f"seed {seed}\n{describe(program)}"
        ends[how] += 1
    assert min(ends["completed"], ends["failed"]) >= 10


@pytest.mark.parametrize("is_disturbed", [False, True])
def test_free_programs_end_in_every_world_and_replay(is_disturbed: bool) -> None:
    free = 0
    for seed in SEEDS:
        program = generate(Random(seed), deterministic=False, kinds=KINDS)
        world = RandomWorld(program, seed, is_disturbed=is_disturbed)
        world.live()
        world.replays()
        world.host.close()
        free += not program.deterministic
        assert (expected_outcome(program)[0] == "any") == (not program.deterministic)
    assert free >= 50


def test_about_half_of_the_programs_are_deterministic() -> None:
    deterministic = sum(generate(Random(seed), kinds=KINDS).deterministic for seed in range(400))
    assert 150 <= deterministic <= 250


def test_a_wrong_result_of_an_activity_shows_in_the_outcome() -> None:
    seen = 0
    for seed in range(60):
        program = generate(Random(seed), deterministic=True, kinds=KINDS)
        how, value = expected_outcome(program)
        world = RandomWorld(program, seed, falsify=1)
        outcome = world.live()
        world.host.close()
        returned = any(
            isinstance(event, ActivityCompleted | ChildCompleted) for it in world.stories for event in it.events
        )
        if not returned:
            assert outcome == (how, outcome[1] if value is None else value)
        seen += how == "completed" and outcome != (how, value)
    assert seen >= 15


def test_all_kinds_and_all_behaviours_occur_and_no_kind_is_rare() -> None:
    kinds: Counter[str] = Counter()
    ways: set[tuple[str, str]] = set()
    behaviours: set[tuple[object, ...]] = set()
    for seed in range(600):
        for node in nodes_of(generate(Random(seed), kinds=KINDS).tree):
            kinds[node.kind] += 1
            ways.add((node.kind, node.way))
            if node.behaviour is not None:
                behaviours.add(traits(node.behaviour))
    assert kinds.keys() == KINDS.keys()
    assert min(kinds.values()) >= 20, kinds
    assert ways == {(kind.name, way) for kind in KINDS.values() for way in kind.ways}
    wanted = {traits(make(Random(seed))) for _, make in RECIPES.values() for seed in range(20)}
    assert behaviours == wanted


def traits(behaviour: Behaviour) -> tuple[object, ...]:
    limits = (behaviour.maximum_attempts, behaviour.start_to_close is None, behaviour.schedule_to_close is None)
    return behaviour.how, behaviour.times is None, *limits


def test_a_program_of_length_zero_occurs_and_completes() -> None:
    assert any(generate(Random(seed), kinds=KINDS).tree == NOTHING for seed in range(600))
    assert expected_outcome(Program(NOTHING)) == ("completed", 1)


def test_programs_fan_out_to_twelve_calls_and_sleep_for_long_at_most_once() -> None:
    widths: set[int] = set()
    long_sleeps: set[int] = set()
    for seed in range(600):
        nodes = list(nodes_of(generate(Random(seed), kinds=KINDS).tree))
        widths |= {len(node.children) for node in nodes if node.kind == "fan out"}
        long_sleeps.add(sum(node.kind == "sleep" and node.seconds == 400 for node in nodes))
    assert widths == set(range(2, 13))
    assert long_sleeps == {0, 1}


@pytest.mark.parametrize(
    ("behaviour", "attempts"),
    [
        (Behaviour(seconds=0.3), ["return"]),
        (Behaviour("fails", 2), ["raise", "raise", "return"]),
        (Behaviour("crashes", 1), ["crash", "return"]),
        (Behaviour("hangs", 1, start_to_close=0.5), ["hang", "return"]),
        (Behaviour("fails", None, maximum_attempts=2), ["raise", "raise", "raise"]),
        (Behaviour("refuses"), ["raise", "raise"]),
    ],
)
def test_the_plan_of_an_attempt_follows_from_how_often_the_call_has_failed(
    behaviour: Behaviour, attempts: list[str]
) -> None:
    plans = [plan_of("work", (behaviour, 7), failed) for failed in range(len(attempts))]
    assert [plan.how for plan in plans] == attempts
    assert all(plan.duration_s == (0.0 if plan.how == "hang" else behaviour.seconds) for plan in plans)
    for plan in plans:
        if plan.how == "raise":
            assert isinstance(plan.error, ApplicationError)
            assert plan.error.non_retryable == (behaviour.how == "refuses")


def test_activities_of_others_just_return() -> None:
    assert plan_of("charge", (1, 2, 3), 5).how == "return"


@pytest.mark.parametrize(
    ("tree", "outcome"),
    [
        (call(Behaviour("refuses")), ("failed", "ActivityError error: Refused: work of 1")),
        (call(Behaviour("hangs", None, start_to_close=0.5, maximum_attempts=2)), ("failed", None)),
        (call(Behaviour(maximum_attempts=1)), ("any", None)),
        (Node("raise"), ("failed", "Raised: raised at 1")),
        (Node("move_on_after", (call(), NOTHING), seconds=0.7), ("any", None)),
        (Node("race", (call(), call())), ("any", None)),
        (Node("nursery", (call(), call()), way="as completed"), ("any", None)),
        (
            Node("fail_after", (Node("sleep", seconds=3.0), NOTHING), seconds=0.7, way="not caught"),
            ("failed", "TooSlowError: "),
        ),
        (
            # An attempt that is cancelled may have an error to tell, which nobody tries to mend then.
            Node(
                "move_on_after", (Node("nursery", (Node("sleep", seconds=3.0), call(Behaviour("fails", 1)))), NOTHING)
            ),
            ("any", None),
        ),
        (
            # Cancelled, it may fail, be caught, and nothing is left that could be cut short.
            Node(
                "move_on_after",
                (
                    Node(
                        "try", (Node("sequence", (call(Behaviour("fails", 1)), Node("sleep", seconds=20.0))), NOTHING)
                    ),
                    NOTHING,
                ),
                seconds=0.7,
            ),
            ("any", None),
        ),
        (
            # The first that fails cancels the other, which may then fail too.
            Node("nursery", (call(Behaviour("refuses")), call(Behaviour("fails", 1))), way="ordered"),
            ("failed", None),
        ),
        (
            # Which of the two comes first decides whether anything is caught.
            Node("try", (Node("nursery", (Node("raise"), call(Behaviour("refuses"))), way="ordered"), NOTHING)),
            ("any", None),
        ),
    ],
)
def test_only_what_holds_in_every_world_is_expected(tree: Node, outcome: Outcome) -> None:
    assert expected_outcome(Program(tree)) == outcome


def test_what_is_expected_can_be_asked_inside_a_trio_program_and_leaves_its_order_alone() -> None:
    import trio
    from trio._core import _run

    program = next(
        p for p in (generate(Random(seed), deterministic=True, kinds=KINDS) for seed in SEEDS) if measure(p) > 400
    )
    outside = expected_outcome(program)

    async def main() -> Outcome:
        state = _run._r.getstate()
        inside = expected_outcome(program)
        assert _run._r.getstate() == state
        return inside

    assert trio.run(main) == outside


def test_a_terminal_event_is_read_in_the_words_of_what_is_expected() -> None:
    completed = WorkflowCompleted(id=3, at=START, result=codec.encode_value(5))
    failed = WorkflowFailed(id=3, at=START, failure=codec.failure_of(ApplicationError("raised at 1", type="Raised")))
    assert outcome_of(completed) == ("completed", 5)
    assert outcome_of(failed) == ("failed", "Raised: raised at 1")


def test_every_smaller_program_is_less_and_runs() -> None:
    rng = Random(1)
    for seed in range(40):
        program = generate(Random(seed), kinds=KINDS)
        steps = 0
        while candidates := list(smaller(program)):
            assert all(measure(one) < measure(program) for one in candidates)
            program = rng.choice(candidates)
            assert describe(program)
            if steps % 4 == 0:
                world = RandomWorld(program, seed)
                outcome, (how, value) = world.live(), expected_outcome(program)
                world.host.close()
                assert how == "any" or outcome == (how, outcome[1] if value is None else value), describe(program)
            steps += 1
        assert program.tree == NOTHING


def test_shrinking_finds_the_node_that_matters() -> None:
    def crashes(program: Program) -> bool:
        return any(node.behaviour is not None and node.behaviour.how == "crashes" for node in nodes_of(program.tree))

    found = 0
    for seed in range(60):
        program = generate(Random(seed), kinds=KINDS)
        if not crashes(program):
            continue
        while (simpler := next(filter(crashes, smaller(program)), None)) is not None:
            program = simpler
        (only,) = nodes_of(program.tree)
        assert only.behaviour is not None
        assert only.behaviour.how == "crashes"
        found += 1
    assert found >= 5


def test_a_description_names_every_node_and_its_part() -> None:
    body = Node("nursery", (call(Behaviour("crashes", 2, 0.3)), Node("sleep", seconds=3.0)), way="ordered")
    tree = Node("move_on_after", (body, call()), seconds=0.7)
    assert describe(Program(tree)).splitlines() == [
        "deterministic",
        "  move_on_after 0.7 s",
        "    body: nursery ordered",
        "      call (crashes 2 times after 0.3 s)",
        "      sleep 3 s",
        "    if cut short: call (returns)",
    ]
