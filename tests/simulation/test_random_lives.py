"""Random lives of whole clusters, under kills and faults of every kind. More of them: ``make simulate SEEDS=10000``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from durablefuture_trio.client._handle import WorkflowHandle
from simulator.life import Life
from simulator.scenario import FAULTS, Scenario, scenario_of
from simulator.shrink import shrink
from simulator.tally import kind_of

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "1000"))
FIRST_SEED = int(os.environ.get("FIRST_SEED", "0"))
BOUNDED_S = 110.0 if "SIMULATION_SEEDS" not in os.environ else 1e9
ROOT = Path(__file__).parents[2]
REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*.json"))


def simulator(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, "-m", "simulator", *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(0)
def test_promises_hold_whatever_is_killed_and_lost() -> None:
    bounds = ("--first", str(FIRST_SEED), "--seeds", str(SEEDS), "--seconds", str(BOUNDED_S))
    done = simulator(*bounds, "--json")
    assert done.returncode == 0, done.stderr
    tally = json.loads(done.stdout)
    print(tally)
    assert not tally["anomalies"]
    # A simulation in which nothing goes wrong proves nothing.
    assert tally["lives"] >= min(SEEDS, 100)
    assert tally["runs"] > tally["lives"]
    expected = {name for name, chances in FAULTS.items() if max(chances) >= 0.05} - {"lands_after_link_loss"}
    if tally["lives"] >= 200:
        assert not expected - tally["faults"].keys()


@pytest.mark.parametrize("scenario", REGRESSIONS, ids=lambda path: path.stem)
def test_what_once_went_wrong_goes_well(scenario: Path) -> None:
    report = Life(msgspec.json.decode(scenario.read_bytes(), type=Scenario)).live()
    assert report.anomalies == []
    assert report.runs


def test_a_seed_stands_for_one_life_in_every_process() -> None:
    for seed in ("3", "11", "20"):
        digests = {
            re.search(r"^digest (\w+)$", simulator("--show", seed, hash_seed=hash_seed).stdout, re.MULTILINE)[1]  # type: ignore[index]
            for hash_seed in ("0", "1", "random")
        }
        assert len(digests) == 1


def test_a_scenario_survives_its_file() -> None:
    for seed in range(20):
        scenario = scenario_of(seed)
        assert msgspec.json.decode(msgspec.json.encode(scenario), type=Scenario) == scenario


def test_a_life_with_an_anomaly_is_shrunk_to_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whatever_is_open(self: WorkflowHandle[object]) -> str:
        return ""

    monkeypatch.setattr(WorkflowHandle, "_run_meant", whatever_is_open)
    for seed in range(200):
        scenario = scenario_of(seed)
        found = kind_of(Life(scenario).live().anomalies)
        if found is not None:
            break
    else:
        raise AssertionError("a termination that is refused and applied goes unnoticed")
    smallest, _ = shrink(scenario, lambda it: kind_of(Life(it).live().anomalies) == found, max_trials=150)
    assert kind_of(Life(smallest).live().anomalies) == found
    assert len(smallest.disturbances) + len(smallest.clients) < len(scenario.disturbances) + len(scenario.clients)
