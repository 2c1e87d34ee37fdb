"""Logging of a supervisor: one line per record on stderr, as text or as JSON."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

from durablefuture_trio.supervisor.settings import LogSettings


def configure_logging(settings: LogSettings) -> None:
    """Send everything from `settings.level` up to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if settings.format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())


def _where(record: logging.LogRecord) -> dict[str, str]:
    """Which child, and which run, a line comes from."""
    fields = {"child": getattr(record, "child", ""), "run_id": getattr(record, "run_id", "")}
    return {key: value for key, value in fields.items() if value}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        where = "".join(f" [{value}]" for value in _where(record).values())
        text = f"{_time(record)} {record.levelname:<7} {record.name}:{where} {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_where(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()
