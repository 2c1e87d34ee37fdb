"""The restart budget and the wait before a restart."""

from __future__ import annotations

import pytest

from durablefuture_trio.supervisor._budget import Backoff, RestartBudget, RestartBudgetSpent


def test_the_eleventh_death_within_a_minute_spends_the_budget_and_names_the_last_one() -> None:
    budget = RestartBudget()
    for second in range(10):
        budget.spend("m0/replay-0 exited with code 1", float(second))
    with pytest.raises(RestartBudgetSpent, match=r"11 child processes .* m0/replay-1 was killed by SIGSEGV"):
        budget.spend("m0/replay-1 was killed by SIGSEGV", 59.9)


def test_deaths_that_are_a_minute_old_do_not_count_any_more() -> None:
    budget = RestartBudget()
    for death in range(100):
        budget.spend("child", death * 6.1)


def test_the_wait_before_a_restart_doubles_while_lives_are_short_and_starts_anew_after_a_stable_one() -> None:
    backoff = Backoff()
    assert [backoff.after(0.1) for _ in range(8)] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert backoff.after(60.0) == 0.0
    assert [backoff.after(0.1) for _ in range(2)] == [0.1, 0.2]
