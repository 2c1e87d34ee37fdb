"""What a seed stands for: a cluster, its clients and everything that will go wrong, as data that can be shrunk."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, Literal

import msgspec

from durablefuture_trio.memory_broker import FaultPlan
from simulator.programs import KINDS, Program, generate
from simulator.programs.desk import OrderWay
from simulator.programs.kinds_workflows import KIDS, kid_id

Action = Literal["run", "use", "rival", "replace", "terminate", "repeat", "look", "signal", "update", "query", "cancel"]
"""What a client does: `run` starts and waits for the result, `use` likewise and is content with an open run, `rival`
starts and wants no other run of the id, `replace` ends what runs, `terminate` loses patience, `repeat` starts twice
under one request id, the second time from another process, `look` describes, reads and lists, `signal` and `update`
send some, `query` asks what the run has seen, `cancel` asks for its end, and may lose patience then."""

Kind = Literal[
    "kill", "kill_at_send", "terminate", "stall", "unplug", "server_kill", "server_pause", "full", "replay_kill",
    "worker_kill",
]  # fmt: skip

FAULTS: dict[str, tuple[float, ...]] = {
    "late_append": (0.0, 0.01, 0.05),
    "dropped_append": (0.0, 0.01, 0.05),
    "lost_puback": (0.0, 0.02, 0.1),
    "delayed_answer": (0.0, 0.02),
    "unanswered_read": (0.0, 0.01),
    "stale_read": (0.0, 0.2),
    "incomplete_read": (0.0, 0.05),
    "lost_ack": (0.0, 0.05, 0.3),
    "late_ack": (0.0, 0.05, 0.3),
    "lost_delivery": (0.0, 0.005, 0.03),
    "lost_tell": (0.0, 0.2),
    "late_fire": (0.0, 0.5),
    "racing_fire": (0.0, 0.5),
    "double_fire": (0.0, 0.2),
    "lands_after_link_loss": (0.0, 0.5),
    "forgotten_ack": (0.0, 0.3),
    "forgotten_delivery": (0.0, 0.3),
}
"""The probabilities a life may have, by the field of `FaultPlan`."""


SKEWS = (0.0, 0.0, -3.0, 2.5, 90.0)
"""Seconds by which a clock may be wrong. With 90 a supervisor owns nothing; the first one is never that wrong."""


class ClientPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One client process.

    Attributes:
        at: when it begins, in seconds of the life.
        workflow: index of the workflow id and program.
        delay: seconds between its two acts, if it has two.
        dies_after: seconds after which it is killed.
        execution_timeout: seconds the run may take.
        target: the workflow id that is meant instead of the program's own.
        what: the name of a signal or an update.
        way: what becomes of the orders of updates.
        count: how many messages; of `cancel` 2: a termination follows.
        again: everything is done a second time under the same ids, by another process.
        start_delay, attempts: options of a start.
        start_signal: a signal comes with the start.
    """

    at: float
    workflow: int
    action: Action
    delay: float = 0.0
    dies_after: float | None = None
    execution_timeout: float | None = None
    target: str = ""
    what: str = ""
    way: OrderWay = "carried out"
    count: int = 1
    again: bool = False
    start_delay: float | None = None
    start_signal: bool = False
    attempts: int | None = None


class Disturbance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that is done to the cluster.

    Attributes:
        at: when, in seconds of the life.
        target: index of the supervisor (and of its child).
        seconds: how long it lasts, or how long until what was killed starts again.
        count: of messages, for `kill_at_send`.
    """

    at: float
    kind: Kind
    target: int = 0
    seconds: float = 0.0
    count: int = 0


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One life, to the last detail but for the dice of single messages, which `seed` decides.

    Attributes:
        cached_workflows: of each replay child.
        skews: by how many seconds each supervisor's wall clock is wrong.
        slow_replay: seconds the slowest answer of a replay child takes.
        faults: probabilities by name, see `FAULTS`.
        programs: one for each workflow id.
    """

    seed: int
    shards: int
    lease_s: float
    skews: tuple[float, ...]
    replays: int
    workers: int
    cached_workflows: int
    slow_replay: float
    latency: float
    faults: dict[str, float]
    programs: tuple[Program, ...]
    clients: tuple[ClientPlan, ...]
    disturbances: tuple[Disturbance, ...]

    @property
    def supervisors(self) -> int:
        """How many there are."""
        return len(self.skews)

    def fault_plan(self) -> FaultPlan:
        """The faults as the model of JetStream takes them."""
        chances: dict[str, Any] = {name: chance for name, chance in self.faults.items() if chance}
        return FaultPlan(latency=(0.0, self.latency), **chances)


TALKATIVE = 0.75
"""Share of the lives in which programs and clients talk to workflows that run."""


def scenario_of(seed: int) -> Scenario:
    """Everything from the seed."""
    scenario = _quiet_scenario(seed)
    rng = Random(f"talk {seed}")
    return _with_talk(rng, scenario) if rng.random() < TALKATIVE else scenario


def _quiet_scenario(seed: int) -> Scenario:
    rng = Random(seed)
    workflows = rng.choice((1, 1, 2, 3, 5, 8))
    supervisors = rng.choice((1, 1, 2, 2, 3))
    calm = rng.random() < 0.1
    lasts_s = rng.choice((2.0, 8.0, 30.0))
    return Scenario(
        seed=seed,
        shards=rng.choice((1, 2, 2, 4)),
        lease_s=rng.choice((2.0, 5.0)),
        skews=(rng.choice((0.0, rng.uniform(-3, 3))), *(rng.choice(SKEWS) for _ in range(1, supervisors))),
        replays=rng.choice((1, 1, 2)),
        workers=rng.choice((1, 2, 4)),
        cached_workflows=rng.choice((0, 1, 2, 1000, 1000)),
        slow_replay=rng.choice((0.0, 0.002, 0.5)),
        latency=rng.choice((0.0, 0.002, 0.002, 0.05)),
        faults={} if calm else {name: rng.choice(chances) for name, chances in FAULTS.items()},
        programs=tuple(generate(rng) for _ in range(workflows)),
        clients=tuple(_clients(rng, workflows, lasts_s)),
        disturbances=() if calm else tuple(_disturbances(rng, supervisors, lasts_s)),
    )


def _clients(rng: Random, workflows: int, lasts_s: float) -> list[ClientPlan]:
    plans: list[ClientPlan] = []
    for workflow in range(workflows):
        first = rng.uniform(0, lasts_s / 2)
        plans.append(
            ClientPlan(
                at=first,
                workflow=workflow,
                action="run",
                execution_timeout=rng.choice((None, None, None, rng.uniform(1, 60))),
                dies_after=rng.choice((None, None, None, rng.uniform(0, 5))),
            )
        )
        actions: tuple[Action, ...] = ("use", "rival", "replace", "terminate", "repeat", "look")
        plans += [
            ClientPlan(
                at=rng.choice((first, rng.uniform(0, lasts_s))),
                workflow=workflow,
                action=rng.choice(actions),
                delay=rng.choice((0.0, rng.uniform(0, 3), rng.uniform(0, 300))),
                dies_after=rng.choice((None, None, None, rng.uniform(0, 5))),
            )
            for _ in range(rng.choice((0, 0, 1, 1, 2, 4)))
        ]
    return plans


def _with_talk(rng: Random, scenario: Scenario) -> Scenario:
    """The same life, whose programs know the whole language, and in which clients use it."""
    programs = tuple(generate(rng, kinds=KINDS) if rng.random() < 0.8 else one for one in scenario.programs)
    clients = [_with_options(rng, plan) if plan.action in STARTS else plan for plan in scenario.clients]
    for workflow in range(len(programs)):
        first = min(plan.at for plan in clients if plan.workflow == workflow)
        clients += [_talker(rng, workflow, first) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    return msgspec.structs.replace(scenario, programs=programs, clients=tuple(clients))


STARTS = ("run", "use", "rival", "replace", "repeat")


def _with_options(rng: Random, plan: ClientPlan) -> ClientPlan:
    return msgspec.structs.replace(
        plan,
        start_delay=rng.choice((None, None, None, None, 0.5, 3.0, 20.0)),
        start_signal=rng.random() < 0.15,
        attempts=rng.choice((None, None, None, 2, 3)),
    )


def _talker(rng: Random, workflow: int, first: float) -> ClientPlan:
    action: Action = rng.choices(("signal", "update", "query", "cancel"), (6, 5, 2, 3))[0]
    what = ""
    if action == "signal":
        what = rng.choice(("nudge", "nudge", "errand", "parcel"))
    elif action == "update":
        what = rng.choice(("adjust", "adjust", "late"))
    delay = rng.choice((0.0, 0.0, rng.uniform(0, 0.2), rng.uniform(0, 1), rng.uniform(0, 5), rng.uniform(0, 30)))
    return ClientPlan(
        at=first,
        workflow=workflow,
        action=action,
        delay=delay,
        dies_after=rng.choice((None, None, None, None, delay + rng.uniform(0, 3))),
        target=rng.choice(("",) * 9 + tuple(kid_id(number) for number in range(1, KIDS + 1))),
        what=what,
        way=rng.choice(("carried out", "carried out", "refused", "failing")),
        count=rng.choice((1, 1, 2, 5)),
        again=rng.random() < 0.3,
    )


def simpler_clients(plan: ClientPlan) -> Iterator[ClientPlan]:
    """Clients to try in place of this one."""
    plain = ClientPlan(at=plan.at, workflow=plan.workflow, action=plan.action)
    for name in ("again", "count", "start_signal", "start_delay", "attempts", "execution_timeout", "dies_after", "way"):
        if getattr(plan, name) != getattr(plain, name):
            yield msgspec.structs.replace(plan, **{name: getattr(plain, name)})


def _disturbances(rng: Random, supervisors: int, lasts_s: float) -> list[Disturbance]:
    kinds: tuple[Kind, ...] = (
        "kill", "kill", "kill_at_send", "kill_at_send", "kill_at_send", "terminate", "stall", "stall", "unplug",
        "server_kill", "server_pause", "full", "replay_kill", "replay_kill", "worker_kill",
    )  # fmt: skip
    return [
        Disturbance(
            at=rng.uniform(0, lasts_s),
            kind=rng.choice(kinds),
            target=rng.randrange(supervisors),
            seconds=rng.choice((0.0, 0.1, 0.5, 2.0, 7.0, 13.0)),
            count=rng.choice((1, 1, 2, 3, 5, 8, 13, 40)),
        )
        for _ in range(rng.choice((0, 2, 5, 10, 20)))
    ]
