"""Values that JSON has no kind for, as text: exact, readable, and strict enough to tell one form from another."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

_DATE = re.compile(r"\d{4}-\d\d-\d\d\Z", re.ASCII)
_TIME = r"\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?"
_OFFSET = r"(?:Z|[+-]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?)?"
_ZONE = r"(?:\[(?P<zone>[^\[\]]+)\])?"
_DATETIME = re.compile(rf"(?P<plain>\d{{4}}-\d\d-\d\d[T ]{_TIME}{_OFFSET}){_ZONE}\Z", re.ASCII)
_CLOCK = re.compile(rf"(?P<plain>{_TIME}{_OFFSET}){_ZONE}\Z", re.ASCII)
_DURATION = re.compile(
    r"(?P<sign>-)?P(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+)(?:\.(?P<fraction>\d{1,6}))?S)?)?\Z",
    re.ASCII,
)


def datetime_text(value: datetime) -> str:
    """RFC 3339; a `ZoneInfo` is appended by name as in RFC 9557: ``2026-03-01T09:30:00+01:00[Europe/Berlin]``.

    The name survives because arithmetic across a change of the offset needs it. Other tzinfo classes keep their offset.
    """
    zone = value.tzinfo
    if isinstance(zone, ZoneInfo) and zone.key:
        return f"{value.isoformat()}[{zone.key}]"
    return value.isoformat()


def datetime_from(text: str) -> datetime:
    """The reverse of `datetime_text`; ValueError if `text` is not of that form."""
    match = _DATETIME.match(text)
    if match is None:
        raise ValueError("not a date and time as in 2026-03-01T09:30:00+01:00")
    value = datetime.fromisoformat(match["plain"])
    if match["zone"] is None:
        return value
    offset = value.utcoffset()
    local = value.replace(tzinfo=ZoneInfo(match["zone"]))
    if offset is not None and local.utcoffset() != offset:
        # The second of the two equal wall clock times at the end of summer time.
        local = local.replace(fold=1)
        if local.utcoffset() != offset:
            raise ValueError(f"{match['zone']} has no offset of {offset} at that time")
    return local


def date_from(text: str) -> date:
    """A date from ``2026-03-01``; ValueError if `text` is not of that form."""
    if _DATE.match(text) is None:
        raise ValueError("not a date as in 2026-03-01")
    return date.fromisoformat(text)


def time_text(value: time) -> str:
    """ISO 8601 clock time, with the zone's name when it has one."""
    zone = value.tzinfo
    if isinstance(zone, ZoneInfo) and zone.key:
        return f"{value.isoformat()}[{zone.key}]"
    return value.isoformat()


def time_from(text: str) -> time:
    """The reverse of `time_text`; ValueError if `text` is not of that form."""
    match = _CLOCK.match(text)
    if match is None:
        raise ValueError("not a time as in 09:30:00.25")
    value = time.fromisoformat(match["plain"])
    return value if match["zone"] is None else value.replace(tzinfo=ZoneInfo(match["zone"]))


def timedelta_text(value: timedelta) -> str:
    """An ISO 8601 duration in days and seconds, exact to the microsecond: ``P1DT3.25S``, ``-PT0.5S``."""
    sign = ""
    if value.days < 0:
        # Not `-value`: the most negative timedelta has no positive counterpart.
        sign = "-"
        microseconds = -((value.days * 86400 + value.seconds) * 1_000_000 + value.microseconds)
    else:
        microseconds = (value.days * 86400 + value.seconds) * 1_000_000 + value.microseconds
    days, rest = divmod(microseconds, 86_400_000_000)
    whole, fraction = divmod(rest, 1_000_000)
    text = f"{sign}P{days}D" if days else f"{sign}P"
    if fraction:
        digits = f"{fraction:06d}".rstrip("0")
        return f"{text}T{whole}.{digits}S"
    return f"{text}T{whole}S" if whole or not days else text


def timedelta_from(text: str) -> timedelta:
    """An ISO 8601 duration of days, hours, minutes and seconds; ValueError if `text` is not of that form."""
    match = _DURATION.match(text)
    if match is None or text.endswith(("P", "T")):
        raise ValueError("not a duration as in P1DT2H3.5S")
    sign = -1 if match["sign"] else 1
    fraction = match["fraction"]
    try:
        return timedelta(
            days=sign * int(match["days"] or 0),
            hours=sign * int(match["hours"] or 0),
            minutes=sign * int(match["minutes"] or 0),
            seconds=sign * int(match["seconds"] or 0),
            microseconds=sign * int(fraction.ljust(6, "0")) if fraction else 0,
        )
    except OverflowError:
        raise ValueError("longer than a timedelta can hold") from None


def decimal_from(value: Any) -> Decimal:
    """A Decimal from its text (or from an integer); ValueError if it is none."""
    try:
        return Decimal(value)
    except InvalidOperation:
        raise ValueError("not a decimal number") from None
