"""From a life that shows an anomaly to a smaller one that still shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import TypeVar

import msgspec

from simulator.programs import measure, smaller
from simulator.scenario import Scenario, simpler_clients

T = TypeVar("T")

MAX_TRIALS = 400


def shrink(
    scenario: Scenario, fails: Callable[[Scenario], bool], *, max_trials: int = MAX_TRIALS
) -> tuple[Scenario, int]:
    """The smallest scenario found that still fails, and how many were tried.

    Whatever is taken out shifts the dice of everything after it, so each smaller scenario is tried under a few seeds.

    Args:
        fails: lives through a scenario; True if the anomaly shows.
    """
    trials = 0
    again = True
    while again:
        again = False
        for simpler in _simpler(scenario):
            for turn in range(3):
                if trials >= max_trials:
                    return scenario, trials
                trials += 1
                candidate = msgspec.structs.replace(simpler, seed=simpler.seed + turn * 1_000_000_007)
                if fails(candidate):
                    scenario, again = candidate, True
                    break
            if again:
                break
    return scenario, trials


def _simpler(scenario: Scenario) -> Iterator[Scenario]:
    replace = msgspec.structs.replace
    for kept in chain(_halves(scenario.disturbances), _without_one(scenario.disturbances)):
        yield replace(scenario, disturbances=kept)
    for clients in chain(_halves(scenario.clients), _without_one(scenario.clients)):
        if clients:
            yield replace(scenario, clients=clients)
    for place, plan in enumerate(scenario.clients):
        for simpler_plan in simpler_clients(plan):
            clients = (*scenario.clients[:place], simpler_plan, *scenario.clients[place + 1 :])
            yield replace(scenario, clients=clients)
    if any(scenario.faults.values()):
        yield replace(scenario, faults={})
        for name, chance in scenario.faults.items():
            if chance:
                yield replace(scenario, faults={**scenario.faults, name: 0.0})
    if scenario.supervisors > 1:
        used = max((it.target for it in scenario.disturbances), default=0)
        for count in range(max(1, used + 1), scenario.supervisors):
            yield replace(scenario, skews=scenario.skews[:count])
    plain = {"shards": 1, "replays": 1, "workers": 1, "slow_replay": 0.0, "cached_workflows": 1000}
    for name, value in plain.items():
        if getattr(scenario, name) != value:
            yield replace(scenario, **{name: value})
    if any(scenario.skews):
        yield replace(scenario, skews=(0.0,) * scenario.supervisors)
    used_programs = {client.workflow for client in scenario.clients}
    for index, program in enumerate(scenario.programs):
        if index in used_programs and measure(program):
            for simpler in smaller(program):
                yield replace(scenario, programs=(*scenario.programs[:index], simpler, *scenario.programs[index + 1 :]))


def _halves(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    if len(items) > 2:
        half = len(items) // 2
        yield items[half:]
        yield items[:half]


def _without_one(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    for place in range(len(items)):
        yield items[:place] + items[place + 1 :]
