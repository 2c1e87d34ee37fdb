"""``python -m simulator``: random lives, and what became of them."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from typing import Any

import msgspec

from simulator.life import Life
from simulator.programs import describe
from simulator.scenario import Scenario, scenario_of
from simulator.shrink import shrink
from simulator.tally import Tally, kind_of, tallies


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many lives (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes")
    parser.add_argument("--seconds", type=float, help="begin no more lives after so long")
    parser.add_argument("--show", type=int, metavar="SEED", help="one life with everything that happens in it")
    parser.add_argument("--shrink", type=int, metavar="SEED", help="a smaller life that shows the anomaly of this one")
    parser.add_argument("--json", action="store_true", help="the tally as JSON")
    options = parser.parse_args()
    if options.shrink is not None:
        return _shrink(options.shrink)
    if options.show is not None:
        return _show(scenario_of(options.show))
    began = time.monotonic()
    total = Tally()
    for tally in tallies(options.first, options.seeds, options.jobs):
        total.add(tally)
        for seed, anomalies in tally.anomalies.items():
            print(f"seed {seed}: {anomalies[0]}", file=sys.stderr)
        if options.seconds is not None and time.monotonic() - began > options.seconds:
            break
    took_s = time.monotonic() - began
    if options.json:
        print(msgspec.json.encode(total).decode())
    else:
        _print(total, took_s)
    return 1 if total.anomalies else 0


def _print(total: Tally, took_s: float) -> None:
    print(
        f"{total.lives} lives of {total.virtual_s / 3600:.1f} virtual hours in {took_s:.0f} s: {total.runs} runs of "
        f"workflows, {total.attempts} attempts of activities, {total.injected} faults, {len(total.anomalies)} anomalies"
    )
    for kind, count in sorted(total.faults.items(), key=lambda item: -item[1]):
        print(f"  {kind:24}{count:>10}")
    for seed in total.anomalies:
        print(f"repeat with: python -m simulator --show {seed}; shrink with: python -m simulator --shrink {seed}")


def _show(scenario: Scenario) -> int:
    life = Life(scenario, keep_trace=True)
    report = life.live()
    _describe(scenario)
    print("\nwhat happened, in seconds:")
    words = {f"w{client.workflow}" for client in scenario.clients} | {f"c{n}" for n in range(len(scenario.clients))}
    for line in report.trace.about(words):
        print(line)
    print(report.trace.failure)
    for anomaly in report.anomalies:
        print(f"ANOMALY: {anomaly}")
    print(f"digest {report.trace.digest}")
    return 1 if report.anomalies else 0


def _describe(scenario: Scenario) -> None:
    settings: dict[str, Any] = {
        name: getattr(scenario, name)
        for name in scenario.__struct_fields__
        if name not in ("programs", "clients", "disturbances", "faults")
    }
    print(json.dumps(settings))
    print("faults:", json.dumps({name: chance for name, chance in scenario.faults.items() if chance}))
    for client in scenario.clients:
        print(client)
    for disturbance in sorted(scenario.disturbances, key=lambda it: it.at):
        print(disturbance)
    for index, program in enumerate(scenario.programs):
        if any(client.workflow == index for client in scenario.clients):
            print(f"w{index}: {describe(program)}")


def _shrink(seed: int) -> int:
    scenario = scenario_of(seed)
    kind = kind_of(Life(scenario).live().anomalies)
    if kind is None:
        print(f"seed {seed} shows no anomaly")
        return 0
    smallest, trials = shrink(scenario, lambda it: kind_of(Life(it).live().anomalies) == kind)
    print(f"after {trials} lives:")
    return _show(smallest)


if __name__ == "__main__":
    sys.exit(main())
