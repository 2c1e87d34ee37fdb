"""How a run ends: what is made of the exceptions that leave its code."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from durablefuture_trio.authoring._runtime import ContinueAsNewRequested

_NO_FAILURES = (trio.Cancelled, ContinueAsNewRequested)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside groups (of groups …), or `error` itself."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from leaves(member)
    else:
        yield error


def only_cancelled(error: BaseException) -> bool:
    """Whether nothing but cancellation is in it."""
    return all(isinstance(leaf, trio.Cancelled) for leaf in leaves(error))


def continuation_in(error: BaseException) -> ContinueAsNewRequested | None:
    """The first wish to continue as new in it, unless there is a real failure beside it, which wins."""
    wishes: list[ContinueAsNewRequested] = []
    for leaf in leaves(error):
        if isinstance(leaf, ContinueAsNewRequested):
            wishes.append(leaf)
        elif not isinstance(leaf, trio.Cancelled):
            return None
    return wishes[0] if wishes else None


def as_failure(error: BaseException) -> BaseException:
    """What is recorded: groups with a single leaf collapsed; Cancelled, which is nobody's failure, left out, and so are
    wishes to continue as new beside a failure."""
    if isinstance(error, BaseExceptionGroup):
        _, rest = error.split(_NO_FAILURES)
        if rest is not None:
            error = rest
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return stray_cancelled(error) if only_cancelled(error) else error


def stray_cancelled(error: BaseException | None) -> RuntimeError:
    """A Cancelled has left the workflow function, and nobody has cancelled that."""
    stray = RuntimeError(
        "trio.Cancelled left the workflow function, but the scope that it belongs to was closed before: do not "
        "keep a Cancelled and raise it later"
    )
    stray.__cause__ = error
    return stray
