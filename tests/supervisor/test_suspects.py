"""Which calls have to run alone after a shared process died."""

from __future__ import annotations

from durablefuture_trio.engine.attempts import ActivityKey
from durablefuture_trio.supervisor import _suspects
from durablefuture_trio.supervisor._suspects import Suspects


def key(activity_id: int, attempt: int = 1) -> ActivityKey:
    return ActivityKey("run", activity_id, attempt)


def test_a_call_is_suspected_whichever_attempt_comes_next() -> None:
    suspects = Suspects()
    suspects.add([key(1), key(2)])
    assert suspects.holds(key(1, attempt=2))
    assert not suspects.holds(key(3))


def test_an_acquittal_clears_one_and_a_conviction_all_of_the_same_death() -> None:
    suspects = Suspects()
    suspects.add([key(1), key(2), key(3)])
    suspects.add([key(8), key(9)])
    suspects.acquit(key(1, 2))
    assert [suspects.holds(key(n)) for n in (1, 2, 3)] == [False, True, True]
    assert suspects.convict(key(2, 2)) == 1
    assert [suspects.holds(key(n)) for n in (2, 3, 8, 9)] == [False, False, True, True]
    assert suspects.convict(key(77)) == 0


def test_the_oldest_suspects_are_forgotten_when_there_are_too_many() -> None:
    suspects = Suspects()
    for number in range(_suspects._MAX_SUSPECTS + 5):
        suspects.add([key(number)])
    assert not suspects.holds(key(4))
    assert suspects.holds(key(5))
