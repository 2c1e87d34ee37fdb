"""The first connection: what is there, what is not, and what the message says."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from durablefuture_trio.errors import BrokerUnavailableError, ConfigError
from durablefuture_trio.nats_bridge import ConnectOptions, open_broker
from tests._support.fake_nats import greeting_server
from tests._support.nats_server import NatsServer, nats_server


async def refused(options: ConnectOptions) -> str:
    with pytest.raises(BrokerUnavailableError) as caught:
        async with open_broker(options):
            pytest.fail("connected")
    return str(caught.value)


def unused_url() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"nats://127.0.0.1:{listener.getsockname()[1]}"


async def test_limits_are_what_the_server_says() -> None:
    async with nats_server(max_payload=123_456) as server, open_broker(ConnectOptions(urls=(server.url,))) as broker:
        assert broker.limits.max_payload_bytes == 123_456
        assert broker.limits.server_version.startswith("2.")
        assert broker.link.up
        assert broker.link.generation == 1


async def test_nothing_listening_is_tried_until_the_deadline_and_then_said() -> None:
    url = unused_url()
    start = trio.current_time()
    message = await refused(ConnectOptions(urls=(url,), connect_timeout_s=0.5))
    assert 0.4 <= trio.current_time() - start < 5
    assert url in message
    assert "No NATS server could be reached" in message
    assert "[nats]" in message


async def test_a_server_that_comes_up_late_is_waited_for(nats: NatsServer) -> None:
    await nats.stop()
    async with trio.open_nursery() as nursery:

        async def start_later() -> None:
            await trio.sleep(0.2)
            await nats.start()

        nursery.start_soon(start_later)
        with trio.fail_after(10):
            async with open_broker(ConnectOptions(urls=(nats.url,))) as broker:
                assert broker.link.up


async def test_wrong_credentials_are_refused_at_once() -> None:
    async with nats_server(user="shop", password="right") as server:
        with trio.fail_after(10):
            message = await refused(
                ConnectOptions(urls=(server.url,), user="shop", password="wr0ng", connect_timeout_s=600)
            )
        assert "refuses the connection" in message
        assert "credentials" in message
        assert "wr0ng" not in message


async def test_right_credentials_work_as_options_and_in_the_url() -> None:
    async with nats_server(user="shop", password="right") as server:
        async with open_broker(ConnectOptions(urls=(server.url,), user="shop", password="right")) as broker:
            assert broker.link.up
        url = server.url.replace("nats://", "nats://shop:right@")
        async with open_broker(ConnectOptions(urls=(url,))) as broker:
            assert broker.link.up
            assert "right" not in repr(broker.link.options)


async def test_a_missing_credentials_file_is_said_at_once(nats: NatsServer, tmp_path: Path) -> None:
    with trio.fail_after(10):
        message = await refused(
            ConnectOptions(urls=(nats.url,), tls_ca_file=tmp_path / "missing.pem", connect_timeout_s=600)
        )
    assert "No such file" in message


async def test_a_plain_server_is_refused_when_tls_is_configured(nats: NatsServer) -> None:
    with trio.fail_after(10):
        message = await refused(ConnectOptions(urls=(nats.url,), tls_hostname="nats.example", connect_timeout_s=600))
    assert "TLS" in message


async def test_a_server_without_jetstream_is_refused_with_the_remedy() -> None:
    async with nats_server(jetstream=False) as server:
        message = await refused(ConnectOptions(urls=(server.url,)))
    assert "has no JetStream" in message
    assert "-js" in message


async def test_a_server_older_than_2_12_is_refused_with_its_version() -> None:
    async with greeting_server("2.11.9") as url:
        message = await refused(ConnectOptions(urls=(url,)))
    assert "2.11.9" in message
    assert "2.12" in message
    assert "Upgrade" in message


async def test_what_the_body_raises_leaves_as_it_is_and_in_no_group(nats: NatsServer) -> None:
    with pytest.raises(ConfigError):
        async with open_broker(ConnectOptions(urls=(nats.url,))):
            raise ConfigError(["wrong"])


async def test_cancelling_the_body_ends_the_broker(nats: NatsServer) -> None:
    with trio.move_on_after(0.05) as scope:
        async with open_broker(ConnectOptions(urls=(nats.url,))):
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_several_brokers_live_in_one_program(nats: NatsServer) -> None:
    options = ConnectOptions(urls=(nats.url,))
    async with open_broker(options) as one:
        async with open_broker(options) as two:
            assert one.link.inbox != two.link.inbox
            await two.link.echo()
        await one.link.echo()
