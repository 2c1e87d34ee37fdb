"""Patterns against every short subject."""

from __future__ import annotations

from itertools import product

import pytest

from durablefuture_trio.memory_broker._subjects import literal_prefix, matcher, overlap

SUBJECTS = [".".join(tokens) for depth in (1, 2, 3, 4) for tokens in product("ab", repeat=depth)]
PATTERNS = [
    ".".join((*tokens, *tail))
    for depth in (0, 1, 2, 3)
    for tokens in product(("a", "b", "*"), repeat=depth)
    for tail in ((), (">",))
    if depth or tail
]


@pytest.mark.parametrize(
    ("pattern", "matching", "not_matching"),
    [
        ("a.b", ["a.b"], ["a", "a.b.c", "a.bb"]),
        ("a.>", ["a.b", "a.b.c"], ["a", "ab.c"]),
        ("a.*", ["a.b"], ["a", "a.b.c"]),
        ("*.b.>", ["a.b.c", "x.b.c.d"], ["a.b", "a.c.b"]),
        ("a.*.c", ["a.b.c"], ["a.b.d", "a.c"]),
        (">", ["a", "a.b"], []),
    ],
)
def test_a_pattern_matches_what_nats_says(pattern: str, matching: list[str], not_matching: list[str]) -> None:
    fits = matcher(pattern)
    assert [subject for subject in matching if not fits(subject)] == []
    assert [subject for subject in not_matching if fits(subject)] == []


def test_two_patterns_overlap_exactly_if_some_subject_matches_both() -> None:
    matched = {pattern: {s for s in SUBJECTS if matcher(pattern)(s)} for pattern in PATTERNS}
    wrong = [
        (one, other)
        for one, other in product(PATTERNS, repeat=2)
        if overlap(one, other) != bool(matched[one] & matched[other])
    ]
    assert wrong == []


def test_every_match_starts_with_the_literal_prefix() -> None:
    for pattern in PATTERNS:
        prefix = literal_prefix(pattern)
        assert all(tuple(s.split("."))[: len(prefix)] == prefix for s in SUBJECTS if matcher(pattern)(s))
