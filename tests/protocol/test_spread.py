"""How shards are spread over supervisors."""

from __future__ import annotations

from collections import Counter

import pytest

from durablefuture_trio.protocol.lease import spread


@pytest.mark.parametrize("shards", [1, 2, 4, 7, 16])
@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_no_member_has_more_than_its_even_share(shards: int, members: int) -> None:
    for salt in range(20):
        owners = spread(shards, frozenset(f"host{salt}-m{member}" for member in range(members)))
        held = Counter(owners)
        assert len(owners) == shards
        assert max(held.values()) <= -(-shards // members)


def test_names_of_one_length_share_the_shards() -> None:
    assert set(spread(4, frozenset({"A", "B"}))) == {"A", "B"}


def test_few_shards_change_hands_when_a_member_comes() -> None:
    moved = 0
    for salt in range(50):
        before = frozenset(f"host{salt}-m{member}" for member in range(3))
        after = before | {f"host{salt}-m3"}
        moved += sum(old != new for old, new in zip(spread(16, before), spread(16, after), strict=True))
    assert moved / 50 <= 9  # four have to; modulo hashing would move twelve
