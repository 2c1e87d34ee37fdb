"""Random lives of whole clusters, under kills and faults of every kind. More of them: `make simulate SEEDS=10000`."""

from __future__ import annotations

import os

import pytest

from tests.simulation.scenario import Scenario, run

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "200"))
FIRST_SEED = int(os.environ.get("FIRST_SEED", "0"))
BATCH = 20


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + SEEDS, BATCH))
def test_promises_hold_whatever_is_killed_and_lost(first: int) -> None:
    for seed in range(first, min(first + BATCH, FIRST_SEED + SEEDS)):
        try:
            run(Scenario.random(seed))
        except BaseException as error:
            error.add_note(f"seed {seed}: repeat with FIRST_SEED={seed} SIMULATION_SEEDS=1 pytest {__file__}")
            raise
