"""What the owners of a shard leave behind for those who come after them: on which runs they may have died.

Nobody can tell why a process died. But an owner that came to its shard after two others within a minute loads one run
after the other, and writes down which before it does; a run on which two died is left alone for a while.
So a run that brings down whoever loads it costs a few lives, and not the shard.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from durablefuture_trio._ids import new_id
from durablefuture_trio.ports.broker import Append, Broker
from durablefuture_trio.protocol.subjects import Subjects

HASTY_S = 60.0
"""Owners that follow each other within this time are no coincidence."""

HASTY_OWNERS = 3
"""So many of them, the last one included, make it cautious."""

FIRST_WAIT_S = 10.0
MAX_WAIT_S = 3600.0
MAX_SUSPECTS = 100


class Suspect(msgspec.Struct, frozen=True, array_like=True):
    """A run on which owners died: how many, and when the last one was found out (Unix seconds)."""

    workflow_id: str
    deaths: int
    at: float

    @property
    def until(self) -> float:
        """When it is tried again. One death may have been somebody else's doing; from the second on, four times as late
        after each."""
        if self.deaths < 2:
            return self.at
        return self.at + min(MAX_WAIT_S, FIRST_WAIT_S * 4.0 ** min(self.deaths - 2, 10))


class CautionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one owner leaves to the next.

    Attributes:
        process: the owner.
        taken: when it and those shortly before it came to the shard, Unix seconds.
        loading: the workflow id it is about to load; empty while it is not cautious.
        suspects: oldest first.
    """

    process: str = ""
    taken: tuple[float, ...] = ()
    loading: str = ""
    suspects: tuple[Suspect, ...] = ()


_decoder = msgspec.json.Decoder(CautionRecord)


class Caution:
    """The record of one shard, as its owner keeps it. Written by the owner alone; a lost write only costs a life."""

    def __init__(self, broker: Broker, subjects: Subjects, shard: int) -> None:
        self._broker = broker
        self._stream = subjects.lease_stream
        self._subject = subjects.caution(shard)
        self._process = new_id()
        self._record = CautionRecord()

    async def enter(self, now: float) -> None:
        """This process has come to the shard (or opens its inbox anew).

        Raises:
            BrokerError: as the server says.
        """
        stored = await self._broker.last(self._stream, self._subject, confirmed=True)
        self._record = self._successor(_read(b"{}" if stored is None else stored.body), now)
        await self._write()

    def _successor(self, before: CautionRecord, now: float) -> CautionRecord:
        if before.process == self._process:
            return msgspec.structs.replace(before, loading="")
        suspects = {suspect.workflow_id: suspect for suspect in before.suspects}
        if before.loading:
            known = suspects.pop(before.loading, None)
            suspects[before.loading] = Suspect(before.loading, 1 if known is None else known.deaths + 1, now)
        recent = tuple(at for at in before.taken if now - at < HASTY_S)
        return CautionRecord(
            process=self._process,
            taken=(*recent[-HASTY_OWNERS:], now),
            suspects=tuple(suspects.values())[-MAX_SUSPECTS:],
        )

    def suspects(self, now: float) -> list[Suspect]:
        """The runs to be left alone for now."""
        return [suspect for suspect in self._record.suspects if now < suspect.until]

    def is_suspect(self, workflow_id: str) -> bool:
        """Whether an owner may have died of this run."""
        return any(suspect.workflow_id == workflow_id for suspect in self._record.suspects)

    def is_advised(self, workflow_ids: Iterable[str]) -> bool:
        """Whether these are to be loaded one after the other."""
        if len(self._record.taken) >= HASTY_OWNERS:
            return True
        return not {suspect.workflow_id for suspect in self._record.suspects}.isdisjoint(workflow_ids)

    async def loading(self, workflow_id: str) -> None:
        """This run is loaded next. Raises BrokerError."""
        self._record = msgspec.structs.replace(self._record, loading=workflow_id)
        await self._write()

    def survived(self, workflow_id: str) -> None:
        """Nothing happened."""
        suspects = tuple(suspect for suspect in self._record.suspects if suspect.workflow_id != workflow_id)
        self._record = msgspec.structs.replace(self._record, loading="", suspects=suspects)

    async def relax(self) -> None:
        """All are loaded. Raises BrokerError."""
        self._record = msgspec.structs.replace(self._record, loading="")
        await self._write()

    async def _write(self) -> None:
        await self._broker.append(Append(subject=self._subject, body=msgspec.json.encode(self._record)))


def _read(body: bytes) -> CautionRecord:
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError:
        return CautionRecord()
