"""The indexes of a stream against a plain list of messages, after random changes, now and as of earlier."""

from __future__ import annotations

from random import Random

import pytest

from durablefuture_trio.memory_broker._stream import Stream
from durablefuture_trio.memory_broker._subjects import matcher
from durablefuture_trio.ports.broker import NO_HEADERS, Stored, StreamSpec

PATTERNS = (">", "h.>", "h.a.>", "h.*.1", "h.a.*", "h.b.2", "h.*", "h.a.1.>", "x.>")


def plain_last_per_subject(messages: list[Stored]) -> list[Stored]:
    return sorted({stored.subject: stored for stored in messages}.values(), key=lambda stored: stored.seq)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("last_per_subject", [False, True])
def test_every_question_is_answered_as_a_plain_list_would(seed: int, last_per_subject: bool) -> None:
    rng = Random(seed)
    stream = Stream(StreamSpec(name="H", subjects=("h.>",), last_per_subject=last_per_subject), "1")
    plain: list[Stored] = []
    snapshots: dict[int, list[Stored]] = {0: []}
    for step in range(200):
        if plain and rng.random() < 0.35:
            gone = rng.choice(plain)
            assert stream.remove(gone.seq) is gone
            plain.remove(gone)
        else:
            subject = f"h.{rng.choice('abc')}.{rng.randint(1, 3)}" + (".deep" if rng.random() < 0.2 else "")
            if last_per_subject and (earlier := [stored for stored in plain if stored.subject == subject]):
                plain = [stored for stored in plain if stored.subject != subject]
                snapshots[stream.revision + 1] = list(plain)
                assert len(earlier) == 1
            plain.append(stream.add(subject, b"%d" % step, NO_HEADERS, float(step)))
        snapshots[stream.revision] = list(plain)
        pattern = rng.choice(PATTERNS)
        fits = matcher(pattern)
        matching = [stored for stored in plain if fits(stored.subject)]
        assert list(stream.matching(pattern)) == matching
        assert stream.last(pattern) == (matching[-1] if matching else None)
        assert stream.last_per_subject(pattern) == plain_last_per_subject(matching)
        after = rng.randint(0, step + 1)
        assert stream.page(pattern, after, 5) == [stored for stored in matching if stored.seq > after][:5]
        revision = rng.randint(max(0, stream.revision - 30), stream.revision)
        then = [stored for stored in snapshots[revision] if fits(stored.subject)]
        assert stream.last(pattern, revision) == max(then, key=lambda stored: stored.seq, default=None)
        assert stream.last_per_subject(pattern, revision) == plain_last_per_subject(then)
        if rng.random() < 0.05 and not last_per_subject:
            back = rng.sample(list(stream.removals)[-5:], min(2, len(stream.removals)))
            stream.bring_back([gone.stored for gone in back])
            for removed in back:
                for at, messages in snapshots.items():
                    if at >= removed.added and removed.stored not in messages:
                        snapshots[at] = sorted([*messages, removed.stored], key=lambda stored: stored.seq)
            plain = list(snapshots[stream.revision])
