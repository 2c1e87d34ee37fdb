"""``durablefuture``: start workflows, wait for them, look at them, talk to them."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from durablefuture_trio._version import __version__

_EPILOG = """\
Arguments (of start, run, signal, query and update) are read as JSON where they are JSON, else as text:
  durablefuture run order Bob 1000.0 true '{"gift": null}'    "Bob", 1000.0, true, {"gift": null}
  durablefuture run order '"1000"' -- -5                      "1000" (text), -5 (everything after -- is an argument)

Data goes to stdout, talk to stderr.
exit codes: 0 ok, 1 the workflow, update or query failed or the request was refused, 2 wrong usage, 69 NATS cannot be
reached or used, 78 the configuration is wrong, 130 interrupted
"""


class ExitCode(IntEnum):
    """What the end of the command tells."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 69
    BAD_CONFIG = 78
    INTERRUPTED = 130
    BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="durablefuture: %(message)s", stream=sys.stderr)
    # What a person in front of the command wants to know: whom it is waiting for.
    logging.getLogger("durablefuture_trio.client").setLevel(logging.INFO)
    try:
        code = _run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has had enough (e.g. `head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE
    except KeyboardInterrupt:
        _complain("interrupted; what was started goes on")
        return ExitCode.INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    # Late: --help and wrong usage need none of it.
    from durablefuture_trio import errors
    from durablefuture_trio.cli._commands import run_command

    try:
        return run_command(options)
    except errors.ConfigError as error:
        _complain(*error.problems)
        return ExitCode.BAD_CONFIG
    except errors.NamespaceError as error:
        _complain(str(error))
        return ExitCode.BAD_CONFIG
    except errors.BrokerUnavailableError as error:
        _complain(str(error))
        return ExitCode.UNREACHABLE
    except errors.DurableFutureError as error:
        _complain(str(error))
        return ExitCode.FAILED
    except UsageError as error:
        _complain(str(error))
        return ExitCode.USAGE


class UsageError(Exception):
    """The command line asks for something that cannot be."""


def _complain(*lines: str) -> None:
    for line in lines:
        print(f"durablefuture: {line}", file=sys.stderr)


def json_or_text(text: str) -> Any:
    """A command-line argument: JSON if it is JSON, else the text itself."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)  # NaN and Infinity are no JSON

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError:
        return text


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ends the program with code 2 if it is wrong."""
    command_line = parser()
    options, rest = command_line.parse_known_args(arguments)
    # argparse takes these arguments in one piece only, and leaves those behind an option over.
    if rest and (not hasattr(options, "arguments") or any(_is_option(text) for text in rest[: _end(rest)])):
        command_line.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        del rest[_end(rest) : _end(rest) + 1]
        options.arguments += rest
    return options


def _end(arguments: Sequence[str]) -> int:
    """Where the options end: at ``--``, or at the end."""
    return arguments.index("--") if "--" in arguments else len(arguments)


def _is_option(text: str) -> bool:
    return text.startswith("-") and not isinstance(json_or_text(text), int | float)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    _add_common(common, default=argparse.SUPPRESS)
    top = argparse.ArgumentParser(
        prog="durablefuture",
        description="Start workflows, wait for them, look at them, talk to them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(top, default=None)
    top.add_argument("--version", action="version", version=f"durablefuture {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, words: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=words, description=words, parents=[common], allow_abbrev=False)

    _add_start(command("start", "start a workflow; prints its id"))
    _add_start(command("run", "start a workflow and wait for its result; prints the result"))
    for name, words in (
        ("result", "wait for the result of a workflow; prints it"),
        ("show", "what is known about a workflow"),
        ("history", "the events of a workflow"),
        ("signal", "tell a workflow something; returns when that is recorded"),
        ("query", "ask a workflow something, open or closed; prints the answer"),
        ("update", "have a workflow do something, and wait for it; prints what comes of it"),
        ("cancel", "ask a workflow to end; its code may clean up"),
        ("terminate", "end a workflow at once, without running its code"),
    ):
        _add_about_one(command(name, words), name)
    listing = command("list", "the workflows of the namespace, the latest started last")
    statuses = ("running", "blocked", "completed", "failed", "cancelled", "continued", "terminated", "timed_out")
    listing.add_argument("--status", action="append", choices=statuses, help="only these; may be repeated")
    listing.add_argument("--workflow", metavar="NAME", help="only workflows of this name")
    listing.add_argument(
        "--limit", metavar="N", type=_count, default=100, help="only the N started last (default 100; 0: all)"
    )
    command("status", "who runs the namespace, and how much is waiting")
    return top


def _add_common(parser: argparse.ArgumentParser, default: Any) -> None:
    """Options that may stand before or after the command."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", metavar="FILE", default=default, help="the supervisor's configuration")
    where.add_argument("--url", metavar="URL", default=default, help="the NATS server, e.g. nats://127.0.0.1:4222")
    parser.add_argument(
        "--namespace", metavar="NS", default=default, help="default: the configuration's, else 'default'"
    )
    parser.add_argument("--json", action="store_true", default=default or False, help="print JSON")


def _add_about_one(parser: argparse.ArgumentParser, command: str) -> None:
    """What a command about one workflow takes."""
    parser.add_argument("id", metavar="ID", help="the workflow id")
    parser.add_argument("--run-id", metavar="RUN", help="one run of the id (default: the latest)")
    if command in ("signal", "query", "update"):
        parser.add_argument("name", metavar="NAME", help=f"the name of the {command}")
        parser.add_argument("arguments", metavar="ARG", nargs="*", help="its arguments: JSON, or else text")
    if command in ("cancel", "terminate"):
        parser.add_argument("--reason", metavar="TEXT", default="", help="kept in the history")
    if command in ("signal", "cancel"):
        parser.add_argument("--request-id", metavar="ID", help=_REQUEST_ID)
    if command == "update":
        parser.add_argument(
            "--update-id", metavar="ID", help="an update of one id is carried out once (default: a fresh one)"
        )


_REQUEST_ID = "makes repeating this very command harmless"


def _add_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow", metavar="WORKFLOW", help="the name of the workflow")
    parser.add_argument("arguments", metavar="ARG", nargs="*", help="its arguments: JSON, or else text")
    parser.add_argument("--id", metavar="ID", help="the workflow id (default: a fresh one)")
    parser.add_argument(
        "--id-conflict-policy",
        choices=("fail", "use_existing", "terminate_existing"),
        default="fail",
        help="when a run of this id is open (default: fail)",
    )
    parser.add_argument(
        "--id-reuse-policy",
        choices=("allow", "failed_only", "reject"),
        default="allow",
        help="when a run of this id has closed (default: allow)",
    )
    parser.add_argument(
        "--execution-timeout", metavar="SECONDS", type=float, help="time out a run that is open so long"
    )
    parser.add_argument("--memo", metavar="JSON", help="a value shown in listings: JSON, or else text")
    parser.add_argument("--delay", metavar="SECONDS", type=float, help="begin so much later")
    parser.add_argument("--signal", metavar="NAME", help="give the run this signal together with its start")
    parser.add_argument(
        "--signal-arg", metavar="ARG", action="append", default=[], help="an argument of that signal; may be repeated"
    )
    parser.add_argument("--request-id", metavar="ID", help=_REQUEST_ID)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number
