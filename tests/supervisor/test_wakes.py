"""Who is woken when."""

from __future__ import annotations

from durablefuture_trio.supervisor._wakes import Wakes


def test_the_due_come_in_the_order_of_their_times_and_once() -> None:
    wakes: Wakes[str] = Wakes()
    wakes.put("late", 3.0)
    wakes.put("soon", 1.0)
    wakes.put("between", 2.0)
    assert wakes.take(2.0) == ["soon", "between"]
    assert wakes.take(2.5) == []
    assert wakes.first == 3.0


def test_a_new_time_replaces_the_one_before_whichever_is_earlier() -> None:
    wakes: Wakes[str] = Wakes()
    wakes.put("sooner", 5.0)
    wakes.put("sooner", 1.0)
    wakes.put("later", 2.0)
    wakes.put("later", 6.0)
    assert wakes.take(5.5) == ["sooner"]
    assert wakes.first == 6.0


def test_who_needs_no_waking_any_more_is_not_woken() -> None:
    wakes: Wakes[str] = Wakes()
    wakes.put("run", 1.0)
    wakes.put("run", None)
    assert wakes.first is None
    assert wakes.take(10.0) == []


def test_only_a_new_first_time_rings() -> None:
    wakes: Wakes[str] = Wakes()
    assert wakes.put("first", 2.0)
    assert not wakes.put("second", 3.0)
    assert wakes.put("third", 1.0)
