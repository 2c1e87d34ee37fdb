"""The embedded server: usable when started, kept running, alone on its directory, gone with its supervisor."""

# ruff: noqa: ASYNC110, ASYNC220 - processes of others are polled, and forking here takes a millisecond

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from durablefuture_trio.errors import BrokerUnavailableError, ConfigError
from durablefuture_trio.nats_bridge import ConnectOptions, NatsBroker, open_broker
from durablefuture_trio.ports.broker import Append, StreamSpec
from durablefuture_trio.supervisor import _embedded
from durablefuture_trio.supervisor._embedded import EmbeddedServer, run_embedded_server
from durablefuture_trio.supervisor._nats_process import find_nats_server
from durablefuture_trio.supervisor._server_file import read_server_file
from durablefuture_trio.supervisor.settings import EmbeddedSettings

HISTORY = StreamSpec(name="H", subjects=("h.>",))
DEADLINE_S = 30


def settings_in(directory: Path, **more: Any) -> EmbeddedSettings:
    return EmbeddedSettings(data_dir=str(directory / "data"), **more)


@asynccontextmanager
async def embedded(settings: EmbeddedSettings) -> AsyncIterator[EmbeddedServer]:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(DEADLINE_S):
            server = await nursery.start(run_embedded_server, settings)
        yield server
        nursery.cancel_scope.cancel()


def options(server: EmbeddedServer) -> ConnectOptions:
    return ConnectOptions(urls=(server.url,), user=server.user, password=server.password)


async def start_and_fail(settings: EmbeddedSettings, error: type[Exception]) -> str:
    with pytest.RaisesGroup(error) as caught:
        async with embedded(settings):
            pytest.fail("started")
    return str(caught.value.exceptions[0])


async def until_gone(pid: int) -> None:
    def runs() -> bool:
        return Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() != b""

    with trio.fail_after(DEADLINE_S):
        while runs():
            await trio.sleep(0.01)


async def until_link(broker: NatsBroker, *, up: bool) -> None:
    with trio.fail_after(DEADLINE_S):
        seen = broker.link.generation
        while broker.link.up is not up:
            seen = await broker.link.changed(seen)


async def test_started_means_usable_and_only_with_the_credentials(tmp_path: Path) -> None:
    async with embedded(settings_in(tmp_path)) as server:
        assert server.url.startswith("nats://127.0.0.1:")
        async with open_broker(options(server)) as broker:
            await broker.provision([HISTORY])
            assert await broker.append(Append(subject="h.a")) == 1
            assert broker.limits.max_payload_bytes == 8 * 1024 * 1024
        with pytest.raises(BrokerUnavailableError, match="credentials"):
            async with open_broker(ConnectOptions(urls=(server.url,))):
                pytest.fail("connected")


async def test_every_message_is_synced_unless_told_otherwise(tmp_path: Path) -> None:
    async with embedded(settings_in(tmp_path)):
        config = json.loads((tmp_path / "data" / "nats-server.conf").read_text())
        assert config["jetstream"]["sync_interval"] == "always"


async def test_the_server_file_tells_all_and_only_its_owner(tmp_path: Path) -> None:
    assert read_server_file(tmp_path / "data") is None
    async with embedded(settings_in(tmp_path)) as server:
        file = read_server_file(tmp_path / "data")
        assert file is not None
        assert (file.url, file.user, file.password, file.pid) == (server.url, server.user, server.password, server.pid)
        assert len(server.password) >= 32
        assert server.password not in repr(file) + repr(server)
        for name in ("server.json", "nats-server.conf"):
            assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


async def test_a_killed_server_comes_back_on_its_port_and_the_bridge_with_it(tmp_path: Path) -> None:
    async with embedded(settings_in(tmp_path)) as server, open_broker(options(server)) as broker:
        await broker.provision([HISTORY])
        await broker.append(Append(subject="h.a", body=b"kept"))
        killed = server.pid
        for _ in range(2):
            os.kill(server.pid, signal.SIGKILL)
            await until_link(broker, up=False)
            await until_link(broker, up=True)
        assert server.pid != killed
        assert server.restarts == 2
        found = await broker.last("H", "h.a")
        assert found is not None
        assert found.body == b"kept"
        file = read_server_file(tmp_path / "data")
        assert file is not None
        assert file.pid == server.pid


async def test_a_restart_on_request_keeps_everything(tmp_path: Path) -> None:
    async with embedded(settings_in(tmp_path)) as server, open_broker(options(server)) as broker:
        before = server.pid
        server.restart_soon()
        await until_link(broker, up=False)
        await until_link(broker, up=True)
        assert server.pid != before


async def test_stopping_ends_the_server_and_the_next_start_keeps_port_credentials_and_data(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    async with embedded(settings) as first, open_broker(options(first)) as broker:
        await broker.provision([HISTORY])
        await broker.append(Append(subject="h.a", body=b"kept"))
    await until_gone(first.pid)
    file = read_server_file(tmp_path / "data")
    assert file is not None
    assert (file.url, file.pid) == (first.url, 0)
    async with embedded(settings) as second, open_broker(options(second)) as broker:
        assert (second.url, second.user, second.password) == (first.url, first.user, first.password)
        found = await broker.last("H", "h.a")
        assert found is not None
        assert found.body == b"kept"


async def test_a_second_supervisor_on_the_directory_is_refused_with_pid_and_remedies(tmp_path: Path) -> None:
    async with embedded(settings_in(tmp_path)) as server:
        message = await start_and_fail(settings_in(tmp_path), ConfigError)
        assert f"pid {os.getpid()}" in message
        assert "stop that one" in message
        assert "data_dir of its own" in message
        async with open_broker(options(server)) as broker:
            assert broker.link.generation == 1, "the first one was disturbed"


SUPERVISOR = """
import sys, trio
from durablefuture_trio.supervisor._embedded import run_embedded_server
from durablefuture_trio.supervisor.settings import EmbeddedSettings

async def main():
    async with trio.open_nursery() as nursery:
        server = await nursery.start(run_embedded_server, EmbeddedSettings(data_dir=sys.argv[1]))
        print(server.pid, flush=True)

trio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
async def test_the_server_dies_with_a_killed_supervisor_and_the_next_one_starts_at_once(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, settings.data_dir], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    with supervisor:
        pid = int(await trio.to_thread.run_sync(supervisor.stdout.readline))
        supervisor.kill()
        await trio.to_thread.run_sync(supervisor.wait)
        async with embedded(settings) as server:
            assert server.pid != pid
            await until_gone(pid)


async def test_an_orphaned_server_is_ended_before_a_new_one_starts(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    async with embedded(settings):
        pass
    data = tmp_path / "data"
    with subprocess.Popen([find_nats_server(), "-c", str(data / "nats-server.conf")]) as orphan:
        try:
            with trio.fail_after(DEADLINE_S):
                while _embedded._recorded_pid(data) != orphan.pid:
                    await trio.sleep(0.01)
            orphan.send_signal(signal.SIGSTOP)
            async with embedded(settings) as server, open_broker(options(server)):
                assert orphan.poll() is not None
        finally:
            orphan.kill()


async def test_a_process_that_only_has_the_number_of_an_old_server_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with subprocess.Popen(["sleep", "600"]) as innocent:
        try:
            (tmp_path / "data" / "nats-server.pid").write_text(str(innocent.pid))
            async with embedded(settings_in(tmp_path)):
                assert innocent.poll() is None
        finally:
            innocent.kill()


async def test_a_remembered_port_that_is_taken_now_is_replaced(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    async with embedded(settings) as server:
        port = int(server.url.rpartition(":")[2])
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        async with embedded(settings) as server, open_broker(options(server)):
            assert int(server.url.rpartition(":")[2]) != port


async def test_a_configured_port_that_is_taken_is_an_error_that_names_it(tmp_path: Path) -> None:
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        port = thief.getsockname()[1]
        message = await start_and_fail(settings_in(tmp_path, port=port), BrokerUnavailableError)
    assert str(port) in message
    assert "in use" in message


async def test_a_server_that_does_not_start_is_shown_with_its_last_words(tmp_path: Path) -> None:
    binary = tmp_path / "broken-server"
    binary.write_text("#!/bin/sh\necho no luck today\nexit 3\n")
    binary.chmod(0o755)
    message = await start_and_fail(settings_in(tmp_path, binary=str(binary)), BrokerUnavailableError)
    assert "exit code 3" in message
    assert "no luck today" in message


async def test_a_server_that_ends_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_embedded, "_RESTARTS", 3)
    with trio.fail_after(DEADLINE_S), pytest.RaisesGroup(BrokerUnavailableError, flatten_subgroups=True) as caught:
        async with embedded(settings_in(tmp_path)) as server:
            killed = 0
            while True:
                if server.pid != killed:
                    killed = server.pid
                    os.kill(killed, signal.SIGKILL)
                await trio.sleep(0.005)
    assert "3 times" in str(caught.value.exceptions[0])


async def test_a_missing_binary_is_a_configuration_error(tmp_path: Path) -> None:
    message = await start_and_fail(settings_in(tmp_path, binary="/nowhere/nats-server"), ConfigError)
    assert "/nowhere/nats-server" in message


async def test_the_binary_may_be_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_SERVER_BIN", "/nowhere/nats-server")
    with pytest.raises(ConfigError, match="NATS_SERVER_BIN"):
        find_nats_server()
    monkeypatch.setenv("NATS_SERVER_BIN", "")
    link = tmp_path / "my-server"
    link.symlink_to(find_nats_server())
    monkeypatch.setenv("NATS_SERVER_BIN", str(link))
    assert find_nats_server() == str(link)


async def test_a_directory_that_cannot_be_used_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    message = await start_and_fail(settings_in(tmp_path), ConfigError)
    assert "cannot be used" in message


def test_a_server_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text("{")
    with pytest.raises(ConfigError, match=r"server\.json"):
        read_server_file(tmp_path)
