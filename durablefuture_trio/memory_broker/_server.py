"""The server: streams, consumers, schedules and core subscriptions, and the ways it can fail as a whole.

Everything here is synchronous and happens at once; what takes time, gets lost or comes late is the business of the
links and of the scheduler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from durablefuture_trio.memory_broker._broker import MemoryBroker, Subscription
from durablefuture_trio.memory_broker._consumer import Consumer, Pull, parse_ack_address
from durablefuture_trio.memory_broker._faults import FaultPlan
from durablefuture_trio.memory_broker._hosted import HostedStream
from durablefuture_trio.memory_broker._schedulers import Callback, Process, Scheduler
from durablefuture_trio.memory_broker._stream import REMEMBERED_REMOVALS, Stream
from durablefuture_trio.memory_broker._subjects import overlap
from durablefuture_trio.ports.broker import (
    Append,
    BrokerLimits,
    ConsumerState,
    Message,
    Rejected,
    Stored,
    StreamDrift,
    StreamSpec,
    StreamState,
)

if TYPE_CHECKING:
    from durablefuture_trio.memory_broker._link import MemoryLink

MAX_SUBJECTS_OF_A_WILDCARD = 1024
"""nats-server answers 413 to a multi_last that matches more."""

SILENT_AFTER_S = 5.0
"""A reader gives up after two missed idle heartbeats."""

_STREAM_NOT_FOUND = 10059
_SUBJECTS_OVERLAP = 10065
_TOO_MANY_RESULTS = 413
_NO_RESPONDERS = 503


class MemoryServer:
    """A JetStream server in memory, shared by any number of links.

    Args:
        scheduler: its clock, and who makes every later call.
        rng: where all chance comes from; default: a generator with a fixed seed.
        faults: what goes wrong, for links without a plan of their own and for schedules and restarts.
        max_payload_bytes: as in nats-server's configuration.

    Attributes:
        faults: may be changed at any time.
        full: the store has no room: publishes are refused, and schedules that come due meanwhile are stuck until the
            server restarts. Acknowledgements, deletions, new consumers and new streams are admitted (m).
        injected: how often each fault has really happened, by kind; `INJECTED_KINDS` are all there are.
        on_trace: called with (time, who, what, subject or name) for everything that happens; for simulations to show.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        rng: Random | None = None,
        faults: FaultPlan | None = None,
        max_payload_bytes: int = 8 * 1024 * 1024,
    ) -> None:
        self.scheduler = scheduler
        self.rng = rng if rng is not None else Random(0)
        self.faults = faults if faults is not None else FaultPlan()
        self.limits = BrokerLimits(max_payload_bytes=max_payload_bytes, server_version="2.15.1")
        self.full = False
        self.injected: Counter[str] = Counter()
        self.on_trace: Callable[[float, str, str, str], None] | None = None
        self.links: list[MemoryLink] = []
        self._streams: dict[str, HostedStream] = {}
        self._streams_made = 0
        self._subscriptions: list[Subscription] = []
        self._running = True
        self._stopped_in_good_order = False
        self._incarnation = 1
        self._pauses = 0
        self._backlog: list[Callback] | None = None

    # --- its life -----------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the process lives (it may be paused)."""
        return self._running

    @property
    def paused(self) -> bool:
        """Whether it is stopped in its tracks: sockets stay open, nothing is answered."""
        return self._backlog is not None

    def connect(
        self,
        name: str,
        *,
        faults: FaultPlan | None = None,
        answer_timeout: float = 5.0,
        process: Process | None = None,
    ) -> MemoryBroker:
        """A link of its own, as one process has it.

        Args:
            name: for traces.
            faults: the link's own plan; default: the server's.
            answer_timeout: seconds until silence becomes `NoAnswer`.
            process: where what comes back is heard; default: right here.
        """
        return MemoryBroker(self, name, faults=faults, answer_timeout=answer_timeout, process=process)

    def pause(self) -> None:
        """Stop answering (SIGSTOP, a stalled disk). Links stay up; readers notice the missing heartbeats."""
        if self._backlog is not None:
            return
        self._backlog = []
        self._pauses += 1
        self.count("server_pause")
        self.scheduler.call_at(self.scheduler.now() + SILENT_AFTER_S, partial(self._silence, self._pauses))
        self.trace("server", "pause")

    def _silence(self, pause: int) -> None:
        if self._backlog is not None and self._pauses == pause:
            for link in self.links:
                link.went_silent()

    def resume(self) -> None:
        """Go on with what has arrived meanwhile, in its order."""
        backlog, self._backlog = self._backlog, None
        self.trace("server", "resume")
        for call in backlog or ():
            call()

    def kill(self) -> None:
        """SIGKILL: every link is lost, what was on its way is not stored."""
        self._end("kill", in_good_order=False)

    def stop(self) -> None:
        """SIGTERM: the same for the links. But acknowledgements, deliveries and which schedules are covered by a plain
        message are written down first: a later `start` has forgotten nothing."""
        self._end("stop", in_good_order=True)

    def _end(self, what: str, *, in_good_order: bool) -> None:
        if not self._running:
            return
        self.trace("server", what)
        self.count(f"server_{what}")
        self._running = False
        self._stopped_in_good_order = in_good_order
        self._backlog = None
        self._incarnation += 1
        for hosted in self._streams.values():
            hosted.server_died()
        for link in self.links:
            link.server_died()

    def start(self, *, forget_acks: int | None = None) -> None:
        """Come back after `kill` or `stop` with every stored message; links reconnect.

        Args:
            forget_acks: after a kill, how many of each work queue's latest acknowledgements are forgotten; default: the
                share that `FaultPlan.forgotten_ack` says, drawn one by one.
        """
        if self._running:
            return
        self._running = True
        for hosted in self._streams.values():
            if self._stopped_in_good_order:
                hosted.server_came_back_from_stop()
            else:
                hosted.server_came_back_from_kill(forget_acks)
        self.trace("server", "start")
        for link in self.links:
            link.server_came_back()

    def restart(self, *, forget_acks: int | None = None) -> None:
        """`kill` and `start`."""
        self.kill()
        self.start(forget_acks=forget_acks)

    def trace(self, who: str, what: str, subject: str = "") -> None:
        """Report to `on_trace`."""
        if self.on_trace is not None:
            self.on_trace(self.scheduler.now(), who, what, subject)

    def count(self, kind: str, times: int = 1) -> None:
        """A fault of this kind has happened so often."""
        if times:  # no entry for what never happened
            self.injected[kind] += times

    def later(self, when: float, call: Callback) -> None:
        """Have the server do something later: not if it has been killed meanwhile, and after a pause, not in it."""
        self.scheduler.call_at(when, partial(self._if_alive, self._incarnation, call))

    def _if_alive(self, incarnation: int, call: Callback) -> None:
        if incarnation != self._incarnation:
            return
        if self._backlog is not None:
            self._backlog.append(call)
        else:
            call()

    def hold(self, call: Callback) -> None:
        """Keep what arrives during a pause."""
        if self._backlog is not None:
            self._backlog.append(call)

    # --- streams ------------------------------------------------------------------------------------------------------

    def provision(self, specs: Sequence[StreamSpec]) -> None:
        """`Broker.provision`."""
        for spec in specs:
            hosted = self._streams.get(spec.name)
            if hosted is not None:
                _check_drift(hosted.stream.spec, spec)
                continue
            for name, other in self._streams.items():
                if any(overlap(mine, theirs) for mine in spec.subjects for theirs in other.stream.spec.subjects):
                    raise Rejected(f"subjects of {spec.name} overlap with stream {name}", _SUBJECTS_OVERLAP)
            self._streams_made += 1
            created = f"{self.scheduler.now():.6f}#{self._streams_made}"
            self._streams[spec.name] = HostedStream(self, Stream(spec, created))

    def stream_state(self, stream: str) -> StreamState | None:
        """`Broker.stream_state`."""
        hosted = self._streams.get(stream)
        return hosted.stream.state(len(hosted.consumers)) if hosted is not None else None

    def _hosted(self, stream: str) -> HostedStream:
        hosted = self._streams.get(stream)
        if hosted is None:
            raise Rejected("stream not found", _STREAM_NOT_FOUND)
        return hosted

    def _direct(self, stream: str) -> Stream:
        """For reads that any replica may answer: they are sent to the stream itself, not to the API."""
        hosted = self._streams.get(stream)
        if hosted is None:
            raise Rejected("no stream answers", _NO_RESPONDERS)
        return hosted.stream

    def _hosted_for(self, subject: str) -> HostedStream | None:
        for hosted in self._streams.values():
            if hosted.takes(subject):
                return hosted
        return None

    # --- publishing ---------------------------------------------------------------------------------------------------

    def append(self, append: Append, who: str = "") -> int:
        """Store a publish, or say why not."""
        if self._subscriptions:  # a core subscriber sees it before it is stored, and also if it is refused
            self._publish_core(Message(subject=append.subject, body=append.body, headers=append.headers))
        hosted = self._hosted_for(append.subject)
        if hosted is None:
            raise Rejected(f"no stream takes {append.subject}", _NO_RESPONDERS)
        return hosted.append(append, who)

    def delete(self, stream: str, seq: int) -> bool:
        """`Broker.delete`."""
        return self._hosted(stream).remove(seq) is not None

    def purge(self, stream: str, subject: str, keep: int) -> int:
        """`Broker.purge`."""
        return self._hosted(stream).purge(subject, keep)

    # --- reading ------------------------------------------------------------------------------------------------------

    def last(self, stream: str, subject: str, *, confirmed: bool, stale_by: int = 0) -> Stored | None:
        """`Broker.last`; unconfirmed perhaps as it was so many changes ago."""
        held = self._hosted(stream).stream if confirmed else self._direct(stream)
        if subject == ">":
            # The server looks at the last sequence alone, and finds nothing if that was removed (m).
            return held.get(held.last_seq)
        if confirmed:
            return held.last(subject)
        stored = held.last(subject, _as_of(held, stale_by))
        self.count("stale_read", bool(stale_by) and stored != held.last(subject))
        return stored

    def many(self, stream: str, subjects: Sequence[str], stale_by: int = 0) -> list[Stored]:
        """`Broker.many`, perhaps as it was so many changes ago."""
        held = self._direct(stream)
        found = held.last_of_each(subjects, _as_of(held, stale_by))
        self.count("stale_read", bool(stale_by) and found != held.last_of_each(subjects))
        if len(found) > MAX_SUBJECTS_OF_A_WILDCARD:
            raise Rejected("Too Many Results", _TOO_MANY_RESULTS)
        return [found[seq] for seq in sorted(found)]

    def page(self, stream: str, subject: str, after: int, size: int) -> list[Stored]:
        """One page of `Broker.scan`."""
        return self._direct(stream).page(subject, after, size)

    # --- consumers ----------------------------------------------------------------------------------------------------

    def consumer_states(self, stream: str) -> list[ConsumerState]:
        """`Broker.consumers`."""
        return [consumer.state() for consumer in self._hosted(stream).consumers.values()]

    def open_consumer(
        self, stream: str, name: str, subject: str, *, ack_wait: float | None, max_ack_pending: int
    ) -> Consumer:
        """The consumer of that name, created if it is missing."""
        return self._hosted(stream).open_consumer(name, subject, ack_wait=ack_wait, max_ack_pending=max_ack_pending)

    def delete_consumer(self, stream: str, name: str) -> bool:
        """`Broker.delete_consumer`."""
        return self._hosted(stream).delete_consumer(name)

    def add_pull(self, consumer: Consumer, pull: Pull) -> None:
        """Begin to deliver to a reader."""
        consumer.pulls.append(pull)
        self.deliver(consumer)

    def remove_pull(self, consumer: Consumer, pull: Pull) -> None:
        """Deliver to it no longer."""
        if pull in consumer.pulls:
            consumer.pulls.remove(pull)

    def deliver(self, consumer: Consumer) -> None:
        """Deliver what can be delivered, e.g. because a reader has room again."""
        self._streams[consumer.stream].deliver(consumer)

    def ack(self, address: str) -> None:
        """An acknowledgement arrives."""
        stream, name, seq = parse_ack_address(address)
        hosted = self._streams.get(stream)
        if hosted is not None:
            hosted.ack(name, seq)

    def in_progress(self, address: str) -> None:
        """A reader asks for more time."""
        stream, name, seq = parse_ack_address(address)
        hosted = self._streams.get(stream)
        if hosted is not None:
            hosted.in_progress(name, seq)

    # --- core ---------------------------------------------------------------------------------------------------------

    def subscribe(self, subscription: Subscription) -> None:
        """Begin to pass core messages on."""
        self._subscriptions.append(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Pass none on any more."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def tell(self, message: Message) -> None:
        """A core message arrives; a stream that has its subject stores it as well."""
        self._publish_core(message)
        hosted = self._hosted_for(message.subject)
        if hosted is not None and not self.full:
            hosted.store(message.subject, message.body, message.headers)

    def _publish_core(self, message: Message) -> None:
        for subscription in self._subscriptions:
            if subscription.wants(message.subject):
                subscription.receive(message)


def _as_of(stream: Stream, stale_by: int) -> int | None:
    return max(0, stream.revision - min(stale_by, REMEMBERED_REMOVALS)) if stale_by else None


def _check_drift(found: StreamSpec, wanted: StreamSpec) -> None:
    differences = [
        f"{name}: wanted {getattr(wanted, name)!r}, found {getattr(found, name)!r}"
        for name in StreamSpec.__struct_fields__
        if getattr(wanted, name) != getattr(found, name)
    ]
    if differences:
        raise StreamDrift(found.name, differences)
