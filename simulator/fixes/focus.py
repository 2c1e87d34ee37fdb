"""What makes the situation of a hole likelier than it is in any life. What happens then is still up to the seed."""

from __future__ import annotations

from random import Random

import msgspec

from simulator.fixes.switch import Focus
from simulator.scenario import ClientPlan, Disturbance, Kind, Scenario


def likelier(**faults: float) -> Focus:
    """Faults of these probabilities."""

    def focus(scenario: Scenario) -> Scenario:
        return msgspec.structs.replace(scenario, faults={**scenario.faults, **faults})

    return focus


def disturbed(*kinds: Kind, count: int, within_s: float, seconds: tuple[float, ...] = (0.0,)) -> Focus:
    """So many further disturbances of these kinds, each lasting one of these times."""

    def focus(scenario: Scenario) -> Scenario:
        rng = Random(f"disturbed {scenario.seed}")
        further = tuple(
            Disturbance(
                at=rng.uniform(0, within_s),
                kind=rng.choice(kinds),
                target=rng.randrange(scenario.supervisors),
                seconds=rng.choice(seconds),
                count=rng.choice((1, 2, 3, 5, 8)),
            )
            for _ in range(count)
        )
        return msgspec.structs.replace(scenario, disturbances=(*scenario.disturbances, *further))

    return focus


def settings(**values: object) -> Focus:
    """These fields of the scenario."""

    def focus(scenario: Scenario) -> Scenario:
        return msgspec.structs.replace(scenario, **values)

    return focus


def asked(*plans: ClientPlan) -> Focus:
    """These clients beside the others; `at` counts from the first client of their workflow."""

    def focus(scenario: Scenario) -> Scenario:
        further: list[ClientPlan] = []
        for workflow in range(len(scenario.programs)):
            first = min(plan.at for plan in scenario.clients if plan.workflow == workflow)
            further += [msgspec.structs.replace(plan, at=first + plan.at, workflow=workflow) for plan in plans]
        return msgspec.structs.replace(scenario, clients=(*scenario.clients, *further))

    return focus


def both(*focuses: Focus) -> Focus:
    """One after the other."""

    def focus(scenario: Scenario) -> Scenario:
        for each in focuses:
            scenario = each(scenario)
        return scenario

    return focus
