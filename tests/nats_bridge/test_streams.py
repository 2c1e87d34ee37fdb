"""Streams are made as they have to be, and a drift is shown."""

from __future__ import annotations

from typing import Any

import pytest

from durablefuture_trio.nats_bridge import NatsBroker
from durablefuture_trio.nats_bridge._js_api import StreamInfo
from durablefuture_trio.nats_bridge.broker import stream_config
from durablefuture_trio.ports.broker import StreamDrift, StreamSpec


async def create(broker: NatsBroker, spec: StreamSpec, **changes: Any) -> None:
    answer = await broker._api.create_stream(spec.name, stream_config(spec) | changes)
    assert answer.error is None, answer.error


async def test_h14_streams_have_no_limit_and_what_schedules_need(broker: NatsBroker) -> None:
    info = await broker._api.stream_info("W")
    assert isinstance(info, StreamInfo)
    config = info.config
    assert {name: config[name] for name in ("max_msgs", "max_bytes", "max_age", "max_msgs_per_subject")} == {
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
    }
    assert config["retention"] == "workqueue"
    assert config["storage"] == "file"
    assert config["discard"] == "old"
    for flag in ("allow_direct", "allow_msg_schedules", "allow_msg_ttl", "allow_rollup_hdrs"):
        assert config[flag] is True


async def test_provision_leaves_what_is_right_alone(broker: NatsBroker) -> None:
    spec = StreamSpec(name="L", subjects=("l.>",), last_per_subject=True)
    before = await broker.stream_state("L")
    await broker.provision([spec])
    assert await broker.stream_state("L") == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"max_msgs": 5}, "max_msgs: wanted -1, found 5"),
        ({"max_bytes": 1_000_000}, "max_bytes: wanted -1, found 1000000"),
        ({"max_age": 60_000_000_000}, "max_age: wanted 0, found 60000000000"),
        ({"allow_direct": False}, "allow_direct: wanted True, found False"),
        ({"storage": "memory"}, "storage: wanted file, found memory"),
        ({"retention": "interest"}, "retention: wanted limits, found interest"),
        ({"subjects": ["x.>", "y.>"]}, "subjects: wanted ['x.>'], found ['x.>', 'y.>']"),
        ({"deny_purge": True}, "deny_purge: wanted False, found True"),
        ({"max_msgs_per_subject": 3}, "max_msgs_per_subject: wanted -1, found 3"),
    ],
)
async def test_a_stream_with_other_settings_is_shown_and_left(
    broker: NatsBroker, changes: dict[str, Any], difference: str
) -> None:
    spec = StreamSpec(name="X", subjects=("x.>",))
    await create(broker, spec, **changes)
    before = await broker._api.stream_info("X")
    with pytest.raises(StreamDrift) as caught:
        await broker.provision([spec])
    assert caught.value.differences == (difference,)
    after = await broker._api.stream_info("X")
    assert before is not None
    assert after is not None
    assert after.config == before.config


async def test_settings_that_do_not_matter_may_differ(broker: NatsBroker) -> None:
    spec = StreamSpec(name="X", subjects=("x.>",))
    await create(broker, spec, duplicate_window=1_000_000_000, description="by hand", compression="s2")
    await broker.provision([spec])


async def test_a_stream_made_by_others_without_schedules_is_a_drift(broker: NatsBroker) -> None:
    await create(broker, StreamSpec(name="X", subjects=("x.>",), retention="workqueue"))
    with pytest.raises(StreamDrift) as caught:
        await broker.provision([StreamSpec(name="X", subjects=("x.>",), retention="workqueue", schedules=True)])
    assert "allow_msg_schedules: wanted True, found False" in caught.value.differences
