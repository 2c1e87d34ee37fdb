"""Where a client finds its server, and connecting to a real one."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import trio

from durablefuture_trio.client import connect
from durablefuture_trio.client._connect import find_namespace, find_server
from durablefuture_trio.errors import (
    BrokerUnavailableError,
    ConfigError,
    NamespaceError,
    WorkflowNotFoundError,
)
from durablefuture_trio.memory_broker import MemoryServer, open_trio_scheduler
from durablefuture_trio.nats_bridge import ConnectOptions, open_broker
from durablefuture_trio.protocol.namespace import establish_namespace
from durablefuture_trio.protocol.projection import Projection, ProjectionRecord
from durablefuture_trio.supervisor._server_file import ServerFile, write_server_file
from tests._support.nats_server import NatsServer
from tests._support.scripted_owner import completed, scripted_owner

NO_ENVIRONMENT: dict[str, str] = {}


@pytest.fixture
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and nothing about us in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("DURABLEFUTURE_NATS_URL", "DURABLEFUTURE_SUPERVISOR_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def server_file(data_dir: Path, port: int) -> None:
    data_dir.mkdir()
    write_server_file(
        data_dir, ServerFile(url=f"nats://127.0.0.1:{port}", port=port, user="me", password="secret", pid=1)
    )


@pytest.mark.usefixtures("empty_directory")
def test_with_nothing_to_go_by_the_error_lists_all_the_places() -> None:
    with pytest.raises(ConfigError) as caught:
        find_server(None, None, NO_ENVIRONMENT)
    for place in ("--url", "--config", "DURABLEFUTURE_NATS_URL", "./supervisor.toml", ".durablefuture/server.json"):
        assert place in str(caught.value)


def test_a_url_goes_before_everything(empty_directory: Path) -> None:
    (empty_directory / "supervisor.toml").write_text('[nats]\nurl = "nats://file:1"\n')
    found = find_server("nats://a:1, nats://b:2", "supervisor.toml", {"DURABLEFUTURE_NATS_URL": "nats://env:1"})
    assert found.options.urls == ("nats://a:1", "nats://b:2")


def test_the_environment_goes_before_a_file_in_the_working_directory(empty_directory: Path) -> None:
    (empty_directory / "supervisor.toml").write_text('[nats]\nurl = "nats://file:1"\n')
    assert find_server(None, None, {"DURABLEFUTURE_NATS_URL": "nats://env:1"}).options.urls == ("nats://env:1",)
    assert find_server(None, None, NO_ENVIRONMENT).options.urls == ("nats://file:1",)


def test_a_configuration_gives_credentials_and_namespace_too(empty_directory: Path) -> None:
    (empty_directory / "other.toml").write_text(
        '[supervisor]\nnamespace = "shop"\n[nats]\nurl = "nats://file:1"\nuser = "u"\npassword = "p"\n'
        "connect_timeout = 3\n[nats.tls]\nca = 'ca.pem'\n"
    )
    (empty_directory / "ca.pem").touch()
    found = find_server(None, "other.toml", NO_ENVIRONMENT)
    assert (found.namespace, found.options.user, found.options.password) == ("shop", "u", "p")
    assert found.options.connect_timeout_s == 3
    assert found.options.tls_ca_file == empty_directory / "ca.pem"
    assert found.source == "other.toml"


def test_a_missing_configuration_is_an_error_and_nothing_else_is_tried(empty_directory: Path) -> None:
    server_file(empty_directory / ".durablefuture", 4)
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        find_server(None, "nowhere.toml", NO_ENVIRONMENT)


def test_the_file_of_an_embedded_server_is_found_in_the_working_directory(empty_directory: Path) -> None:
    server_file(empty_directory / ".durablefuture", 4)
    options = find_server(None, None, NO_ENVIRONMENT).options
    assert (options.urls, options.user, options.password) == (("nats://127.0.0.1:4",), "me", "secret")


def test_the_embedded_server_of_a_configuration_is_found_in_its_data_dir(empty_directory: Path) -> None:
    project = empty_directory / "project"
    project.mkdir()
    (project / "supervisor.toml").write_text('[nats.embedded]\ndata_dir = "data"\n')
    with pytest.raises(ConfigError, match=r"start the supervisor with durablefuture-supervisor --config project"):
        find_server(None, "project/supervisor.toml", NO_ENVIRONMENT)
    server_file(project / "data", 5)
    assert find_server(None, "project/supervisor.toml", NO_ENVIRONMENT).options.urls == ("nats://127.0.0.1:5",)


@pytest.mark.usefixtures("empty_directory")
def test_an_empty_url_is_an_error() -> None:
    with pytest.raises(ConfigError, match="url is empty"):
        find_server(" ", None, NO_ENVIRONMENT)


async def test_a_server_that_is_not_there_is_said_with_where_its_address_comes_from(
    empty_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_directory / "supervisor.toml").write_text('[nats]\nurl = "nats://127.0.0.1:9"\nconnect_timeout = 0.2\n')
    with pytest.raises(BrokerUnavailableError, match=r"supervisor\.toml"):
        async with connect():
            pass


async def test_a_namespace_that_nobody_has_set_up_is_said_after_a_while() -> None:
    async with open_trio_scheduler() as scheduler:
        broker = MemoryServer(scheduler).connect("client")
        with pytest.raises(NamespaceError, match=r"namespace 'shop' does not exist .* start a supervisor"):
            await find_namespace(broker, "shop", wait_s=0.05)


async def test_a_namespace_that_is_set_up_meanwhile_is_found() -> None:
    async with open_trio_scheduler() as scheduler:
        server = MemoryServer(scheduler)
        async with trio.open_nursery() as nursery:

            async def find() -> None:
                assert (await find_namespace(server.connect("client"), "shop")).shards == 3

            nursery.start_soon(find)
            await trio.testing.wait_all_tasks_blocked()
            await establish_namespace(server.connect("owner"), "shop", shards=3)


async def test_a_server_that_does_not_answer_is_unavailable() -> None:
    async with open_trio_scheduler() as scheduler:
        server = MemoryServer(scheduler)
        broker = server.connect("client", answer_timeout=0.01)
        server.pause()
        with pytest.raises(BrokerUnavailableError, match="namespace 'shop'"):
            await find_namespace(broker, "shop", wait_s=0.05)


async def test_a_workflow_runs_over_a_real_server(nats: NatsServer) -> None:
    async with open_broker(ConnectOptions(urls=(nats.url,))) as broker:
        subjects = await establish_namespace(broker, "shop", shards=1)
        async with scripted_owner(broker, subjects) as owner, connect(nats.url, namespace="shop") as client:
            results: list[object] = []
            async with trio.open_nursery() as nursery:

                async def run() -> None:
                    with trio.fail_after(20):
                        results.append(await client.run("order", "Bob", id="order 1.*>é"))

                nursery.start_soon(run)
                with trio.fail_after(20):
                    message, request = await owner.start_request()
                    await owner.begin(message, "run-1")
                    await owner.close(request.workflow_id, "run-1", completed({"ok": True}))
            assert results == [{"ok": True}]
            assert await client.handle("order 1.*>é").result() == {"ok": True}
            assert [event.type for event in await client.handle("order 1.*>é").history()] == [
                "WorkflowStarted",
                "WorkflowCompleted",
            ]
            with pytest.raises(WorkflowNotFoundError):
                await client.handle("other").result()
            assert [item async for item in client.list()] == []
            status = await client.status()
            assert (status.namespace, len(status.shards), status.shards[0].owner) == ("shop", 1, "")


async def test_a_listing_may_be_left_early(nats: NatsServer) -> None:
    async with open_broker(ConnectOptions(urls=(nats.url,))) as broker:
        projection = Projection(broker, await establish_namespace(broker, "default", shards=1))
        for workflow_id in ("a", "b"):
            record = ProjectionRecord(
                workflow_id=workflow_id, run_id="r", workflow="order", n=1, status="running", started_at=1.0
            )
            await projection.write(record)
    async with connect(nats.url) as client:
        async for item in client.list():
            assert item.workflow_id == "a"
            break
        # A generator that was not closed would complain now.
        gc.collect()


async def test_what_the_body_raises_leaves_connect_as_it_is(nats: NatsServer) -> None:
    async with open_broker(ConnectOptions(urls=(nats.url,))) as broker:
        await establish_namespace(broker, "default", shards=1)
    with pytest.raises(LookupError, match="mine"):
        async with connect(nats.url):
            raise LookupError("mine")


async def test_a_namespace_of_many_streams_is_missing_on_a_fresh_server(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durablefuture_trio.client._connect.find_namespace", _impatient)
    with pytest.raises(NamespaceError, match="'default' does not exist"):
        async with connect(nats.url):
            pass


async def _impatient(broker: object, name: str) -> object:
    return await find_namespace(broker, name, wait_s=0.2)  # type: ignore[arg-type]


def test_importing_the_client_loads_neither_nats_nor_the_supervisor() -> None:
    import subprocess

    code = (
        "import sys, durablefuture_trio.client; "
        "print([name for name in sys.modules if name.split('.')[0] in ('nats', 'asyncio', 'trio_asyncio') "
        "or name.startswith(('durablefuture_trio.supervisor', 'durablefuture_trio.nats_bridge'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
