"""Every fix of the protocol matters: taken out, random lives show the hole it closes.

Here a few lives each, from where the hole is known to show. All fixes: `python -m simulator.fixes`.
"""

from __future__ import annotations

import os

import pytest

from simulator.fixes import FIXES, search
from simulator.fixes.switch import Patch, StaleSwitch, nothing

IS_THOROUGH = "SIMULATION_SEEDS" in os.environ
"""Set by `make simulate`: all fixes, from the first seed."""

PATIENCE_S = 3000.0 if IS_THOROUGH else 600.0
"""Longer than any request is asked again after; those who wait in vain are simulated to its end."""

MOST_LIVES = 200
FEW_LIVES = 30
"""A fix that takes more lives than this to show is left to `make simulate`."""

LONG_LIVES = {
    "the epoch counts up",
    "a timer's time is its deadline at least",
    "a cancelled call in backoff is answered",
}
"""Likewise those whose lives take long without them."""

SHOWN = [
    fix
    for fix in FIXES.values()
    if fix.caught_by and (IS_THOROUGH or (fix.lives <= FEW_LIVES and fix.name not in LONG_LIVES))
]


# A simulated supervisor that dies of an error of the engine leaves generators that nobody closes.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", [fix.name for fix in SHOWN])
def test_without_this_fix_a_life_shows_its_hole(name: str) -> None:
    fix = FIXES[name]
    first = 0 if IS_THOROUGH else fix.lives - 1
    # The generator of lives may change a little: then another one of the next shows it.
    seeds = range(first, first + min(MOST_LIVES, max(20, 5 * fix.lives)))
    found = search(fix, seeds, seconds=60, patience_s=PATIENCE_S)
    assert found.seed is not None, f"{found.lives} lives without {name!r} show nothing: is it still needed?"


@pytest.mark.parametrize("name", FIXES)
def test_every_switch_fits_the_product_and_leaves_no_trace(name: str) -> None:
    fix = FIXES[name]
    before = [vars(patch.owner).get(patch.name) for patch in fix.patches]
    with fix.removed():
        assert all(vars(patch.owner).get(patch.name) is not was for patch, was in zip(fix.patches, before, strict=True))
    assert [vars(patch.owner).get(patch.name) for patch in fix.patches] == before


def test_a_switch_for_something_that_has_gone_says_so() -> None:
    class Product:
        pass

    with (
        pytest.raises(StaleSwitch, match=r"Product\.gone is no function any more"),
        Patch(Product, "gone", nothing).applied(),
    ):
        pass


@pytest.mark.parametrize("name", [fix.name for fix in FIXES.values() if not fix.caught_by])
def test_of_every_fix_that_no_life_shows_it_is_said_why(name: str) -> None:
    assert FIXES[name].remark
