"""What the differential test does: port operations at random, from one seed."""

from __future__ import annotations

import time
from random import Random

import trio

from durablefuture_trio.ports.broker import Append, Delivery
from tests._support.broker_servers import STREAMS
from tests.contract.differential import PATIENCE_S, Pair, Side, TooSlow, schedule_at, without_time

LITERALS = {
    "H": ("h.a.1", "h.a.2", "h.b.1"),
    "W": ("w.a.start", "w.a.sig", "w.b.start", "w.b.sig"),
    "T": ("t.q1.1", "t.q1.2", "t.q2.1"),
    "R": ("r.1", "r.2"),
}
PATTERNS = {
    "H": (">", "h.>", "h.a.>", "h.*.1", "h.a.1", "h.none", "h.*", "w.>"),
    "W": (">", "w.>", "s.>", "w.a.>", "w.*.start", "s.a", "s.*", "h.>", "w.a.sig"),
    "T": (">", "t.>", "t.q1.>", "t.*.1", "t.q2.1"),
    "R": (">", "r.>", "r.*", "r.1"),
}
# What is rolled up or purged under a consumer not done with it spoils its figures on a real server, in more ways than
# are worth modelling: the walk keeps away from that, as the product does; test_readers.py has what matters of it.
FILTERS = {"H": PATTERNS["H"], "W": ("w.>", "w.a.>", "w.*.start", "w.a.sig"), "T": PATTERNS["T"]}
SCHEDULED = ("s.a", "s.b", "s.c.1")
FAR = 5000.0


class Walk:
    """A random walk over a pair.

    Args:
        slack_s: time there is for what has to be done before a schedule is due.
    """

    def __init__(self, pair: Pair, rng: Random, slack_s: float) -> None:
        self.pair = pair
        self.rng = rng
        self.slack_s = slack_s
        self.last_seq = dict.fromkeys(LITERALS, 0)

    async def run(self, steps: int) -> None:
        """So many steps, and three phases with waiting among them."""
        for phase in (self.schedules, self.redeliveries, self.schedules):
            for _ in range(steps // 3):
                await self.step()
            await self.pair.compare_all()
            await phase()
            await self.pair.compare_all()

    async def step(self) -> None:
        rng = self.rng
        operation = rng.choices(
            (
                self.append, self.arm, self.look, self.delete, self.purge, self.open, self.close, self.delete_consumer,
                self.ack, self.in_progress, self.restart,
            ),
            (30, 6, 10, 6, 4, 10, 4, 4, 16, 2, 2),
        )[0]  # fmt: skip
        await operation()
        await self.pair.settle()

    # --- publishing ---------------------------------------------------------------------------------------------------

    async def append(self) -> None:
        stream = self.rng.choice("HWWTTR")
        subject = self.rng.choice((*LITERALS[stream], *(SCHEDULED[:1] if stream == "W" else ())))
        await self.send(
            stream,
            Append(
                subject=subject,
                body=self.body(),
                headers=self.rng.choice(({}, {}, {"K": "v", "Other": "1 2"})),
                expect_last=await self.expectation(stream, subject),
                message_id=self.message_id(),
            ),
        )

    async def arm(self) -> None:
        rng = self.rng
        stream, subject = rng.choice((*[("W", s) for s in SCHEDULED * 2], ("H", "h.a.1")))
        targets = ("w.a.timer", "w.b.sig", "w.b.sig", "h.x", "w.*", subject, "s.b", "nowhere.at.all")
        await self.send(
            stream,
            schedule_at(
                FAR,
                subject,
                rng.choice(targets[:3] * 3 + targets),
                self.body(),
                expect_last=await self.expectation(stream, subject),
                message_id=self.message_id(),
            ),
        )

    async def send(self, stream: str, append: Append) -> object:
        link = self.rng.choice("ab")
        answer = await self.pair.do(f"{append}", lambda side: getattr(side, link).append(append))
        if isinstance(answer, int):
            self.last_seq[stream] = max(answer, self.last_seq[stream])
        return answer

    def body(self) -> bytes:
        return b"%d" % self.rng.randint(0, 10**6) if self.rng.random() < 0.9 else b""

    def message_id(self) -> str | None:
        return f"m{self.rng.randint(0, 5)}" if self.rng.random() < 0.3 else None

    async def expectation(self, stream: str, subject: str) -> int | None:
        choice = self.rng.random()
        if choice < 0.5:
            return None
        if choice < 0.65:
            return 0
        if choice < 0.9:
            stored = await self.pair.memory.a.last(stream, subject, confirmed=True)
            return stored.seq if stored is not None else 0
        return self.rng.randint(1, self.last_seq[stream] + 2)

    # --- reading and removing -----------------------------------------------------------------------------------------

    async def look(self) -> None:
        rng = self.rng
        stream = rng.choice("HWTR")
        pattern = rng.choice(PATTERNS[stream])
        question = rng.randrange(3)
        if question == 0:
            confirmed = rng.random() < 0.5

            async def last(side: Side) -> object:
                return without_time(await side.a.last(stream, pattern, confirmed=confirmed))

            await self.pair.do(f"last {stream} {pattern} {confirmed=}", last)
        elif question == 1:
            subjects = rng.choices((*LITERALS[stream], *PATTERNS[stream]), k=rng.randint(1, 4))

            async def many(side: Side) -> object:
                return [without_time(stored) for stored in await side.b.many(stream, subjects)]

            await self.pair.do(f"many {stream} {subjects}", many)
        else:
            after = rng.choice((0, 0, rng.randint(0, self.last_seq[stream] + 2)))

            async def scan(side: Side) -> object:
                return [without_time(stored) async for stored in side.b.scan(stream, pattern, after=after)]

            await self.pair.do(f"scan {stream} {pattern} {after=}", scan)

    async def delete(self) -> None:
        stream = self.rng.choice("HWTR")
        seq = self.rng.randint(1, self.last_seq[stream] + 1)
        await self.pair.do(f"delete {stream} {seq}", lambda side: side.a.delete(stream, seq))

    async def purge(self) -> None:
        stream = self.rng.choice("HWTR")
        pattern, keep = self.rng.choice(PATTERNS[stream]), self.rng.choice((0, 0, 1, 2))
        if any(c.ack_pending or c.pending for c in await self.pair.memory.a.consumers(stream)):
            return
        await self.pair.do(f"purge {stream} {pattern} {keep=}", lambda side: side.a.purge(stream, pattern, keep=keep))

    async def restart(self) -> None:
        self.pair.log.append("restart")
        for side in self.pair.sides:
            await side.restart()

    # --- consumers ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        rng = self.rng
        stream = rng.choice("HWWT")
        name, pattern = f"own-{rng.randint(1, 3)}", rng.choice(FILTERS[stream])
        ack_wait, max_ack_pending = rng.choice((None, None, PATIENCE_S)), rng.choice((-1, -1, 1, 2))
        states = await self.pair.memory.a.consumers(stream)
        if any(state.name == name for state in states) and rng.random() < 0.6:
            # As it is, so that it can be opened.
            consumer = self.pair.memory.server.server._streams[stream].consumers[name]  # type: ignore[union-attr]
            pattern, ack_wait, max_ack_pending = consumer.filter_subject, consumer.ack_wait, consumer.max_ack_pending
        if self.being_read(stream, name):
            return  # two readers of one consumer share its messages as they please
        await self.pair.do(
            f"open {len(self.pair.memory.readings)}: {stream} {name} {pattern} {ack_wait=} {max_ack_pending=}",
            lambda side: side.open(stream, name, pattern, ack_wait, max_ack_pending),
        )

    def being_read(self, stream: str, name: str) -> bool:
        return any(reading.of == (stream, name) and reading.lost is None for reading in self.pair.memory.readings)

    def open_readings(self) -> list[int]:
        return [n for n, reading in enumerate(self.pair.memory.readings) if reading.lost is None]

    async def close(self) -> None:
        if found := self.open_readings():
            number = self.rng.choice(found)
            await self.pair.do(f"close {number}", lambda side: side.close(number))

    async def delete_consumer(self) -> None:
        stream, name = self.rng.choice("HWT"), f"own-{self.rng.randint(1, 3)}"
        await self.pair.do(f"delete consumer {stream} {name}", lambda side: side.a.delete_consumer(stream, name))

    async def ack(self) -> None:
        await self.tell_reader("ack")

    async def in_progress(self) -> None:
        await self.tell_reader("in_progress")

    async def tell_reader(self, what: str) -> None:
        """An acknowledgement of anything any reader ever got, also of deleted consumers, also again."""
        memory, nats = self.pair.sides
        found = [n for n, reading in enumerate(memory.readings) if reading.got]
        if not found:
            return
        number = self.rng.choice(found[-3:] if self.rng.random() < 0.7 else found)
        place = self.rng.randrange(len(memory.readings[number].got))
        self.pair.log.append(f"{what} of {number}: {_short(memory.readings[number].got[place])}")
        for side in (memory, nats):
            reading = side.readings[number]
            getattr(reading.reader, what)(reading.got[place])
        await nats.b.consumers("H")

    # --- with waiting -------------------------------------------------------------------------------------------------

    async def schedules(self) -> None:
        """One schedule that would fire soon, what may befall it before, and the wait until everything is over."""
        rng = self.rng
        due = time.time() + self.slack_s
        subject = rng.choice(SCHEDULED)
        target = rng.choice(("w.a.timer", "w.b.sig", "s.b", "s.a"))
        if target == subject:
            target = "w.a.timer"
        answer = await self.send(
            "W", schedule_at(self.slack_s, subject, target, self.body(), message_id=self.message_id())
        )
        for _ in range(rng.randint(0, 3)):
            await self.pair.settle()
            await self.befall(subject, target, due, answer)
        await self.pair.settle()
        if time.time() > due - 0.1:
            raise TooSlow
        await trio.sleep(due - time.time() + 0.5)
        self.pair.log.append("due by now")
        if rng.random() < 0.3:
            await self.pair.compare_all()
            await self.restart()
            await trio.sleep(0.4)
        await self.pair.compare_all()

    async def befall(self, subject: str, target: str, due: float, seq: object) -> None:
        """Something happens to a schedule before it is due."""
        rng, do = self.rng, self.pair.do
        what = rng.choice(("far", "soon", "plain", "neutralise", "neutralise", "delete", "purge", "target", "restart"))
        if what == "far":
            await self.send("W", schedule_at(FAR, subject, target, b"far"))
        elif what == "soon":
            await self.send("W", schedule_at(due - time.time(), subject, target, b"soon"))
        elif what == "plain":
            await self.send("W", Append(subject=subject, body=b"plain"))
        elif what == "neutralise":
            expect_last = seq if isinstance(seq, int) and rng.random() < 0.5 else None
            message_id = self.message_id()
            await self.send(
                "W", Append(subject=subject, neutralise=True, expect_last=expect_last, message_id=message_id)
            )
        elif what == "delete" and isinstance(seq, int):
            doomed = seq + rng.choice((0, 0, 1))
            await do(f"delete W {doomed}", lambda side: side.a.delete("W", doomed))
        elif what == "purge":
            pattern, keep = rng.choice((subject, "s.>")), rng.choice((0, 1))
            await do(f"purge W {pattern} {keep=}", lambda side: side.a.purge("W", pattern, keep=keep))
        elif what == "target":
            await self.send("W", Append(subject=target, body=b"to the target"))
        elif what == "restart" and rng.random() < 0.5:
            await self.restart()

    async def redeliveries(self) -> None:
        """A consumer with a short wait: what is acknowledged, what comes again, in which order and how often."""
        rng, pair = self.rng, self.pair
        for name in ("own-1", "own-2", "own-3"):
            await pair.do(f"delete consumer T {name}", lambda side: side.a.delete_consumer("T", name))  # noqa: B023
        wait = self.slack_s * 0.6
        limit = rng.choice((-1, 2, 3))
        for _ in range(rng.randint(1, 4)):
            await self.send("T", Append(subject=rng.choice(LITERALS["T"]), body=self.body()))
        number = len(pair.memory.readings)
        begun = time.time()
        await pair.do(f"open {number}: T again {wait=}", lambda side: side.open("T", "again", "t.>", wait, limit))
        await pair.settle()
        for delivery in list(pair.memory.readings[number].got):
            if rng.random() < 0.5:
                await self.tell(number, "ack", delivery)
        if time.time() > begun + wait - 0.05:
            raise TooSlow
        await pair.settle()
        expected = [d.seq for d in pair.memory.readings[number].got]
        await trio.sleep(begun + wait * 1.6 - time.time())
        again = time.time()
        await pair.settle()
        if again > begun + wait * 1.9:
            raise TooSlow
        for delivery in list(pair.memory.readings[number].got)[len(expected) :]:
            await self.tell(number, "ack", delivery)
        await pair.settle()
        while any(c.name == "again" and c.ack_pending for c in await pair.memory.a.consumers("T")):
            for delivery in list(pair.memory.readings[number].got):
                await self.tell(number, "ack", delivery)
            await pair.settle()
        await pair.do("delete consumer T again", lambda side: side.a.delete_consumer("T", "again"))

    async def tell(self, number: int, what: str, delivery: Delivery) -> None:
        self.pair.log.append(f"{what} of {number}: {_short(delivery)}")
        place = next(n for n, d in enumerate(self.pair.memory.readings[number].got) if d is delivery)
        for side in self.pair.sides:
            reading = side.readings[number]
            getattr(reading.reader, what)(reading.got[place])


def _short(delivery: Delivery) -> str:
    return f"{delivery.subject} {delivery.seq} ({delivery.delivered})"


STREAM_NAMES = tuple(spec.name for spec in STREAMS)
