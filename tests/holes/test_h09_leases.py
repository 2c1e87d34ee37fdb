"""Who owns a shard is decided by a compare-and-set on its record; silence counts only while one's own link answers."""

from __future__ import annotations

import msgspec
import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.memory_broker import MemoryServer, open_trio_scheduler
from durablefuture_trio.ports.broker import Append, Broker, NoAnswer
from durablefuture_trio.protocol.lease import Lease, LeaseLost, LeaseRecord, LeaseTable, Member, _Seen
from durablefuture_trio.protocol.namespace import establish_namespace
from durablefuture_trio.protocol.subjects import Subjects
from tests._support.holes import Stage, stage
from tests.holes.conftest import Namespace


class BlindTable(LeaseTable):
    """Writes its lease whatever stands there."""

    async def _write(self, shard: int, record: LeaseRecord, expect: int) -> Lease:
        append = Append(subject=self._subjects.lease(shard), body=msgspec.json.encode(record))
        seq = await self._broker.append(append)
        self._shards[shard] = _Seen(seq, 0.0, record)
        return Lease(shard, record.epoch, seq)


class ForgetfulTable(LeaseTable):
    """Counts the silence of others also while its own link does not answer."""

    def interrupted(self) -> None:
        """Nothing that was seen is doubted."""


def table_of(name: str, broker: Broker, subjects: Subjects, table_type: type[LeaseTable]) -> LeaseTable:
    return table_type(broker, subjects, Member(name=name, token=f"token-{name}", incarnation=name))


async def granted(table: LeaseTable, lease: Lease | None = None) -> Lease | None:
    """Take (or renew) the lease of shard 0; None: somebody else has it."""
    try:
        return await (table.take(0) if lease is None else table.renew(lease))
    except LeaseLost:
        return None


@pytest.mark.parametrize(("table_type", "winners"), [(LeaseTable, 1), (BlindTable, 2)])
async def test_h09_of_two_heirs_who_see_the_same_dead_owner_one_wins(
    namespace: Namespace, table_type: type[LeaseTable], winners: int
) -> None:
    a, b, subjects = namespace
    heirs = [table_of("B", a, subjects, table_type), table_of("C", b, subjects, table_type)]
    for heir in heirs:
        await heir.observe(0.0)
    leases = [await granted(heir) for heir in heirs]
    assert sum(lease is not None for lease in leases) == winners
    assert {lease.epoch for lease in leases if lease is not None} == {1}, "an epoch that two have is worth nothing"


@pytest.mark.parametrize(("table_type", "is_granted"), [(LeaseTable, False), (BlindTable, True)])
async def test_h09_an_owner_that_was_replaced_cannot_renew(
    namespace: Namespace, table_type: type[LeaseTable], is_granted: bool
) -> None:
    a, b, subjects = namespace
    before, after = table_of("A", a, subjects, table_type), table_of("B", b, subjects, table_type)
    old = await granted(before)
    await after.observe(0.0)
    new = await granted(after)
    assert new is not None
    assert new.epoch == 2
    assert (await granted(before, old) is not None) is is_granted
    standing = await b.last(subjects.lease_stream, subjects.lease(0), confirmed=True)
    assert standing is not None
    record = msgspec.json.decode(standing.body, type=LeaseRecord)
    assert record.owner == ("A" if is_granted else "B")


async def test_h09_a_renewal_that_lands_after_it_was_given_up_does_not_keep_its_owner_from_the_lease(
    namespace: Namespace,
) -> None:
    a, b, subjects = namespace
    owner, given_up = (table_of("A", a, subjects, LeaseTable) for _ in range(2))
    first = await granted(owner)
    assert first is not None
    await given_up.observe(0.0)
    assert await granted(given_up, first) is not None
    again = await granted(owner)
    assert again is not None
    assert again.epoch == 2
    other = table_of("B", b, subjects, LeaseTable)
    await other.observe(0.0)
    assert await granted(other) is not None
    assert await granted(owner) is None


@pytest.mark.parametrize(("table_type", "is_taken"), [(LeaseTable, False), (ForgetfulTable, True)])
async def test_h09_a_stalled_server_makes_no_lease_expire(
    autojump_clock: MockClock, table_type: type[LeaseTable], is_taken: bool
) -> None:
    """The server stands still for 8 s: nobody can renew, and nobody may conclude anything from that."""
    async with open_trio_scheduler() as scheduler:
        server = MemoryServer(scheduler)
        a, b = server.connect("A"), server.connect("B")
        subjects = await establish_namespace(a, "test", shards=1)
        await table_of("A", a, subjects, table_type).take(0)
        watching = table_of("B", b, subjects, table_type)
        await watching.observe(trio.current_time())
        server.pause()
        with pytest.raises(NoAnswer):
            await watching.observe(trio.current_time())
        watching.interrupted()
        await trio.sleep(3)
        server.resume()
        now = trio.current_time()
        await watching.observe(now)
        watching.settle_interruption(now)
        assert watching.is_available(0, now) is is_taken


def owners(scene: Stage) -> list[str]:
    """Who believes to own the shard."""
    supervisors = scene.cluster.supervisors.values()
    return [item.name for item in supervisors if item.ownership is not None and 0 in item.ownership.shards]


async def test_h09_an_owner_that_was_cut_off_gives_way_and_nothing_storms(autojump_clock: MockClock) -> None:
    async with stage() as scene:
        async with trio.open_nursery() as nursery:
            for name in ("A", "B"):
                nursery.start_soon(scene.cluster.start, name)
        await scene.until(20)
        [first] = owners(scene)
        link = scene.cluster.supervisors[first].broker.link
        link.drop()
        await scene.until(32)
        link.restore()
        for second in range(40, 80):
            await scene.until(second)
            assert len(owners(scene)) == 1
        lease = scene.server.last("DF_test_L", "df.test.l.0", confirmed=True)
        assert lease is not None
        assert msgspec.json.decode(lease.body, type=LeaseRecord).epoch <= 4
