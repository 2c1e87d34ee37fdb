"""How a fix of the protocol is taken out for the length of a test, and put back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

from simulator.scenario import Scenario
from simulator.supervisor import Parts

Replacement: TypeAlias = Callable[..., Any]
"""Called in place of a function, with the original before its own arguments."""

Focus: TypeAlias = Callable[[Scenario], Scenario]
"""Makes the situation of a hole likelier than it is in any life; what happens then is still up to the seed."""

_MISSING = object()


class StaleSwitch(Exception):
    """A switch does not fit the product any more: what it replaces has gone, or is called differently."""


@dataclass(frozen=True)
class Patch:
    """One function of the product that is replaced.

    Attributes:
        owner: the class or module it belongs to.
        name: of the function (or property).
    """

    owner: type | ModuleType
    name: str
    replacement: Replacement

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace it within the block.

        Raises:
            StaleSwitch: there is no such function.
        """
        found = inspect.getattr_static(self.owner, self.name, _MISSING)
        function = _function_of(found)
        if function is None:
            raise StaleSwitch(f"{self.owner.__name__}.{self.name} is no function any more: mend the switch")
        is_own = self.name in vars(self.owner)
        setattr(self.owner, self.name, _like(found, self._call_instead(function)))
        try:
            yield
        finally:
            if is_own:
                setattr(self.owner, self.name, found)
            else:
                delattr(self.owner, self.name)

    def _call_instead(self, original: Callable[..., Any]) -> Callable[..., Any]:
        replacement = self.replacement

        def call(*args: Any, **others: Any) -> Any:
            return replacement(original, *args, **others)

        return call


def _function_of(found: object) -> Callable[..., Any] | None:
    if isinstance(found, staticmethod):
        return found.__func__
    if isinstance(found, property):
        return found.fget
    return found if callable(found) and not isinstance(found, type) else None


def _like(found: object, function: Callable[..., Any]) -> object:
    if isinstance(found, staticmethod):
        return staticmethod(function)
    return property(function) if isinstance(found, property) else function


@dataclass(frozen=True)
class Fix:
    """A decision of the protocol, and how it is taken out.

    Attributes:
        name: for people and for the command line.
        holes: which holes of the protocol it closes, by number.
        without: what is done instead once it is taken out, in words.
        patches: how it is taken out.
        caught_by: a pattern of the anomaly that tells that its hole is open; empty: no life shows it.
        lives: how many seeds from 0 on it took to see that, when it was measured.
        focus: what makes the situation likelier, if it is rare.
        world: what else is different in those lives, whether the fix is there or not.
        focused: focus and world in words.
        remark: what else there is to say, above all about fixes that no life shows.
    """

    name: str
    holes: str
    without: str
    patches: tuple[Patch, ...]
    caught_by: str = ""
    lives: int = 0
    focus: Focus | None = None
    world: tuple[Patch, ...] = ()
    focused: str = ""
    remark: str = ""

    @contextmanager
    def removed(self) -> Iterator[Parts]:
        """Take it out within the block; gives what supervisors are to be made of.

        Raises:
            StaleSwitch: the product has changed, and the switch with it has to.
        """
        with ExitStack() as stack:
            for patch in (*self.world, *self.patches):
                stack.enter_context(patch.applied())
            yield Parts()

    @contextmanager
    def in_place(self) -> Iterator[Parts]:
        """The same circumstances with the fix."""
        with ExitStack() as stack:
            for patch in self.world:
                stack.enter_context(patch.applied())
            yield Parts()

    def scenario(self, scenario: Scenario) -> Scenario:
        """The life as it is lived for this fix."""
        return scenario if self.focus is None else self.focus(scenario)


def nothing(original: Callable[..., Any], *args: Any, **others: Any) -> None:
    """A replacement that does nothing."""


def saying(value: object) -> Replacement:
    """A replacement that answers the same to everything."""

    def answer(original: Callable[..., Any], *args: Any, **others: Any) -> object:
        return value

    return answer
