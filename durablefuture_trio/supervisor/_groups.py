"""Exception groups, as nurseries make them, taken apart."""

from __future__ import annotations

from typing import TypeVar

import trio

E = TypeVar("E", bound=Exception)


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions inside a group of any depth; a lone exception is its own only leaf."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def only(error: BaseException, kind: type[E]) -> list[E]:
    """The leaves of `kind`, when there is nothing else but cancellation beside them; else an empty list."""
    found: list[E] = []
    for leaf in leaves(error):
        if isinstance(leaf, kind):
            found.append(leaf)
        elif not isinstance(leaf, trio.Cancelled):
            return []
    return found
