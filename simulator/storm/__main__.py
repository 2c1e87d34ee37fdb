"""``python -m simulator.storm``: storms over real processes."""

from __future__ import annotations

import argparse
import math
import secrets
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec
import trio

from simulator.storm.dump import dump
from simulator.storm.plan import Plan
from simulator.storm.rounds import RoundReport, run_round, say

_EPILOG = """\
A storm is a row of rounds, each with processes, a server and a directory of its own, disturbed for --round-seconds and
judged at once. The seed decides about programs, clients, victims and moments; how far each process has got by then, no
seed can decide.

exit codes: 0 all promises were kept, 1 one was broken (what is known about it is kept), 2 wrong usage, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.embedded and options.supervisors not in (None, 1):
        _parser().error("--embedded: an embedded server has one supervisor")
    reports: list[RoundReport] = []
    code = trio.run(_storm, options, reports)
    total = _total(options.seed, reports)
    print(msgspec.json.encode(total).decode() if options.json else _in_words(total))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulator.storm",
        description="Real supervisors, children and nats-servers under SIGKILL, SIGSTOP and restarts, judged by the "
        "oracle that judges simulated lives.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seconds", type=float, default=300, help="how long to disturb, all rounds (default: 300)")
    parser.add_argument("--round-seconds", type=float, default=60, help="how long one round is (default: 60)")
    parser.add_argument("--seed", default=None, help="default: another one each time")
    parser.add_argument("--round", type=int, default=None, metavar="N", help="only this round, from 0")
    parser.add_argument("--supervisors", type=int, choices=(1, 2, 3), help="default: as the seed says")
    parser.add_argument("--embedded", action="store_true", default=None, help="the server is the supervisor's own")
    parser.add_argument("--shared", dest="embedded", action="store_false", help="the server is nobody's own")
    parser.add_argument("--directory", type=Path, help="where everything is kept (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep what is known about rounds without anomalies, too")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    return parser


async def _storm(options: argparse.Namespace, reports: list[RoundReport]) -> int:
    if options.seed is None:
        options.seed = str(secrets.randbelow(10**9))
    interrupted = False
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            nonlocal interrupted
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                async for _ in signals:
                    interrupted = True
                    nursery.cancel_scope.cancel()

        nursery.start_soon(listen)
        await _rounds(options, reports)
        nursery.cancel_scope.cancel()
    if interrupted:
        return 130
    return 1 if any(report.anomalies for report in reports) else 0


async def _rounds(options: argparse.Namespace, reports: list[RoundReport]) -> None:
    directory = options.directory or Path(tempfile.mkdtemp(prefix="durablefuture-storm-"))
    directory.mkdir(parents=True, exist_ok=True)
    count = max(1, math.ceil(options.seconds / options.round_seconds))
    seconds = options.seconds / count
    try:
        for number in range(count) if options.round is None else [options.round]:
            plan = Plan.drawn(
                f"{options.seed}/{number}", seconds, supervisors=options.supervisors, embedded=options.embedded
            )
            say(f"round {plan.seed}: {plan}")
            reports.append(await _round(plan, directory / f"round-{number}", number, options, seconds))
    finally:
        if not any(directory.iterdir()):
            directory.rmdir()


async def _round(plan: Plan, home: Path, number: int, options: argparse.Namespace, seconds: float) -> RoundReport:
    home.mkdir()  # noqa: ASYNC240 - one directory, once a round
    keep = True
    try:
        observed = await run_round(plan, home)
        report = observed.report
        keep = bool(report.anomalies) or options.keep
        say(_of_round(report))
        if keep:
            if observed.evidence is not None:
                dump(observed.evidence, home / "histories.txt")
            same = [f"--seed {options.seed} --round {number} --seconds {seconds:g} --round-seconds {seconds:g}"]
            same += [f"--supervisors {options.supervisors}"] if options.supervisors else []
            same += [] if options.embedded is None else ["--embedded" if options.embedded else "--shared"]
            say(f"kept in {home}; once more: python -m simulator.storm {' '.join(same)}")
        return report
    finally:
        interrupted = trio.current_effective_deadline() == -math.inf
        if interrupted or not keep:
            shutil.rmtree(home)


def _of_round(report: RoundReport) -> str:
    lines = [
        f"round {report.seed}: {report.runs} runs, {report.attempts} attempts, {report.told} words to clients, "
        f"{sum(report.disturbances.values())} disturbances; all ended after {report.finished_after_s:g} s, quiet after "
        f"{report.quiet_after_s:g} s; {len(report.anomalies) or 'no'} anomalies",
        *(f"  {anomaly[:2000]}" for anomaly in report.anomalies[:20]),
    ]
    return "\n".join(lines)


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """The whole storm; fields as in `RoundReport`, the times are the longest ones."""

    seed: str
    rounds: int
    seconds: float
    workflow_ids: int
    runs: int
    attempts: int
    told: int
    disturbances: dict[str, int]
    exits: dict[str, int]
    finished_after_s: float
    quiet_after_s: float
    anomalies: dict[str, list[str]]


def _total(seed: str, reports: list[RoundReport]) -> Total:
    disturbances: Counter[str] = Counter()
    exits: Counter[str] = Counter()
    for report in reports:
        disturbances.update(report.disturbances)
        exits.update(report.exits)
    sums = [asdict(report) for report in reports]
    return Total(
        seed=seed,
        rounds=len(reports),
        seconds=round(sum(report.seconds for report in reports), 3),
        **{name: sum(item[name] for item in sums) for name in ("workflow_ids", "runs", "attempts", "told")},
        disturbances=dict(disturbances.most_common()),
        exits=dict(exits.most_common()),
        finished_after_s=max((report.finished_after_s for report in reports), default=0.0),
        quiet_after_s=max((report.quiet_after_s for report in reports), default=0.0),
        anomalies={report.seed: report.anomalies for report in reports if report.anomalies},
    )


def _in_words(total: Total) -> str:
    kinds = "".join(f"\n  {count:6d} {kind}" for kind, count in total.disturbances.items())
    exits = ", ".join(f"{words}: {count}" for words, count in total.exits.items()) or "none"
    anomalies = sum(len(found) for found in total.anomalies.values())
    return (
        f"seed {total.seed}: {total.rounds} rounds, {total.seconds:g} s of storm\n"
        f"{total.workflow_ids} workflow ids, {total.runs} runs, {total.attempts} attempts, {total.told} words to "
        f"clients\n{sum(total.disturbances.values())} disturbances:{kinds}\n"
        f"ends of supervisors: {exits}\n"
        f"after the last disturbance: all runs ended within {total.finished_after_s:g} s, "
        f"all was quiet within {total.quiet_after_s:g} s\n{anomalies or 'no'} anomalies"
    )


if __name__ == "__main__":
    sys.exit(main())
