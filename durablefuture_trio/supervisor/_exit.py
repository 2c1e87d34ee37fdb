"""Exit codes: what the end of a supervisor tells whoever started it."""

from __future__ import annotations

from enum import IntEnum

from durablefuture_trio.errors import BrokerUnavailableError, ConfigError, NamespaceError
from durablefuture_trio.supervisor._budget import RestartBudgetSpent
from durablefuture_trio.supervisor._groups import leaves


class ExitCode(IntEnum):
    """The numbers of sysexits.h, as far as they fit."""

    OK = 0
    USAGE = 2
    NATS_UNREACHABLE = 69
    RESTART_BUDGET_SPENT = 70
    DRAIN_DEADLINE_PASSED = 75
    BAD_CONFIG = 78


_CODES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (ConfigError, ExitCode.BAD_CONFIG),
    (NamespaceError, ExitCode.BAD_CONFIG),
    (BrokerUnavailableError, ExitCode.NATS_UNREACHABLE),
    (RestartBudgetSpent, ExitCode.RESTART_BUDGET_SPENT),
)


def explain(error: BaseException) -> tuple[ExitCode, tuple[str, ...]] | None:
    """The exit code and the lines for the user, when `error` (or everything that counts in a group) is of a kind that
    the user can do something about; None for a defect, which deserves its traceback."""
    expected: list[tuple[ExitCode, Exception]] = []
    for leaf in leaves(error):
        code = next((code for kind, code in _CODES if isinstance(leaf, kind)), None)
        if code is None or not isinstance(leaf, Exception):
            return None
        expected.append((code, leaf))
    code = max(code for code, _ in expected)
    lines = dict.fromkeys(line for _, leaf in expected for line in str(leaf).splitlines())
    return code, tuple(lines)
