"""Paranoid mode in simulated lives: whatever is killed and lost, a replay elsewhere never goes differently."""

from __future__ import annotations

from simulator.life import Life
from simulator.scenario import scenario_of

LIVES = 60


def test_no_history_is_doubted_whatever_is_killed_and_lost() -> None:
    verified = 0
    for seed in range(LIVES):
        report = Life(scenario_of(seed), paranoid=True).live()
        assert report.anomalies == [], f"seed {seed}"
        verified += report.verified
    assert verified > 10 * LIVES
