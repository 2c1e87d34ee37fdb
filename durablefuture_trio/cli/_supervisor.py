"""``durablefuture-supervisor``: run a supervisor, or look at its configuration."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence

from durablefuture_trio._version import __version__
from durablefuture_trio.errors import ConfigError
from durablefuture_trio.supervisor._exit import ExitCode, explain
from durablefuture_trio.supervisor._logging import configure_logging
from durablefuture_trio.supervisor.settings import Settings, load_settings, render_settings

_EPILOG = """\
Every key of the configuration can be overridden by an environment variable, e.g. DURABLEFUTURE_NATS_URL.

exit codes: 0 stopped as asked, 2 wrong usage, 69 NATS cannot be reached or used, 70 child processes keep dying,
75 work was cut off by the drain timeout or a second signal, 78 the configuration or the code is wrong
"""


def supervisor_main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings(options.config, os.environ)
        if options.print_config:
            sys.stdout.write(render_settings(settings))
            if not options.check:
                return ExitCode.OK
        if options.check:
            return _check(settings)
        configure_logging(settings.log)
        return _run(settings)
    except (Exception, BaseExceptionGroup) as error:
        explained = explain(error)
        if explained is None:
            raise
        code, lines = explained
        _complain(lines)
        return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="durablefuture-supervisor",
        description="Run a supervisor of durable workflows: NATS (embedded unless a URL is configured), the replay "
        "processes and the activity processes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", default="supervisor.toml", help="the configuration (default: ./supervisor.toml)"
    )
    parser.add_argument(
        "--check", action="store_true", help="check the configuration and import the modules, then exit"
    )
    parser.add_argument("--print-config", action="store_true", help="print the configuration in force, then exit")
    parser.add_argument("--version", action="version", version=f"durablefuture-supervisor {__version__}")
    return parser


def _run(settings: Settings) -> int:
    from durablefuture_trio import app

    code: int = app.run(settings)
    return code


def _check(settings: Settings) -> int:
    from durablefuture_trio.cli._checking import check_modules

    found = check_modules(settings)
    if found.problems:
        raise ConfigError(found.problems)
    print(f"workflows: {', '.join(found.workflows) or 'none'}")
    print(f"activities: {', '.join(found.activities) or 'none'}")
    return ExitCode.OK


def _complain(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"durablefuture-supervisor: {line}", file=sys.stderr)
