"""A server that cannot be used ends the supervisor with 69 and the remedy; what contradicts it with 78."""

from __future__ import annotations

import re
import socket
from functools import partial
from typing import Any

import orjson
import pytest
import trio

from durablefuture_trio import RequestFailedError
from durablefuture_trio.client import Client, WorkflowHandle
from durablefuture_trio.nats_bridge import ConnectOptions, open_broker
from tests._support import acceptance_app as app
from tests._support.fake_nats import greeting_server
from tests._support.installation import Installation, until, zombies
from tests._support.nats_server import NatsServer, nats_server


def configure(installation: Installation, nats: str, supervisor: str = "") -> None:
    installation.configure(
        f"""\
        [supervisor]
        modules = ["tests._support.acceptance_app"]
        state_dir = "state"
        {supervisor}
        [nats]
        connect_timeout = 2.0
        {nats}
        [[activity_pool]]
        processes = 1
        """.replace("        ", "")
    )


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert isinstance(port, int)
        return port


async def assert_refused(installation: Installation, code: int, *words: str) -> str:
    """The supervisor and the command both end with the code and the words. Gives the supervisor's."""
    done = await installation.refused()
    assert done.code == code, done.stderr
    (told,) = re.findall(r"^durablefuture-supervisor: .*", done.stderr, re.MULTILINE | re.DOTALL)
    for word in words:
        assert word in told, told
    assert "Traceback" not in done.stderr
    return str(told)


async def test_a_server_that_is_down_is_told_with_its_address(installation: Installation) -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    configure(installation, f'url = "{url}"')
    await assert_refused(installation, 69, url, "within 2 s")
    command = await installation.command("list")
    assert command.code == 69
    assert url in command.stderr
    assert "supervisor.toml" in command.stderr, "it says who named the address"


async def test_wrong_credentials_are_told_as_such(installation: Installation) -> None:
    async with nats_server(user="shop", password="secret") as server:
        configure(installation, f'url = "{server.url}"\nuser = "shop"\npassword = "wrong"')
        told = await assert_refused(installation, 69, server.url, "password")
        assert "wrong" not in told.replace("wrong credentials", ""), "the password is not for logs"
        assert (await installation.command("list")).code == 69
        configure(installation, f'url = "{server.url}"\nuser = "shop"\npassword = "secret"')
        process = await installation.start()
        assert (await installation.command("run", "greeting", "Bob")).stdout == '"hello Bob"\n'
        assert await process.stop() == 0


async def test_a_server_without_jetstream_is_told_how_to_get_it(installation: Installation) -> None:
    async with nats_server(jetstream=False) as server:
        configure(installation, f'url = "{server.url}"')
        await assert_refused(installation, 69, "no JetStream", "Start the server with JetStream (-js")
        assert (await installation.command("list")).code == 69


async def test_a_server_that_is_too_old_is_told_which_it_needs(installation: Installation) -> None:
    async with greeting_server("2.11.4") as url:
        configure(installation, f'url = "{url}"')
        await assert_refused(installation, 69, "2.11.4", "2.12")


async def test_something_else_than_a_nats_server_is_told_as_such(installation: Installation) -> None:
    async def mumble(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"220 mail.example.org ESMTP\r\n")
            await trio.sleep(30)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, mumble, 0, host="127.0.0.1"))
        url = f"nats://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        configure(installation, f'url = "{url}"')
        await assert_refused(installation, 69, url)
        nursery.cancel_scope.cancel()


async def test_a_stream_whose_settings_have_drifted_is_refused_with_the_difference(
    installation: Installation, nats: NatsServer
) -> None:
    configure(installation, f'url = "{nats.url}"')
    process = await installation.start()
    assert await process.stop() == 0
    await change_stream(nats, "DF_default_H1", max_msgs=1000)
    told = await assert_refused(installation, 78, "DF_default_H1", "max_msgs", "1000")
    assert "nats stream edit" in told or "set it back" in told or "default" in told
    # With its settings back it is taken again.
    await change_stream(nats, "DF_default_H1", max_msgs=-1)
    assert await (await installation.start()).stop() == 0


async def change_stream(nats: NatsServer, name: str, **changes: object) -> None:
    """Change the settings of a stream as an operator would."""
    async with open_broker(ConnectOptions(urls=(nats.url,))) as broker:

        async def request(subject: str, body: bytes) -> Any:
            ((answer, _),) = await broker._link.request(subject.encode(), body)
            return orjson.loads(answer)

        info = await request(f"$JS.API.STREAM.INFO.{name}", b"")
        answer = await request(f"$JS.API.STREAM.UPDATE.{name}", orjson.dumps({**info["config"], **changes}))
        assert "error" not in answer, answer


async def test_a_second_supervisor_on_the_same_directory_is_told_of_the_first_and_what_to_do(
    installation: Installation,
) -> None:
    installation.configure(
        """
        [supervisor]
        modules = ["tests._support.acceptance_app"]
        [nats.embedded]
        data_dir = "data"
        [[activity_pool]]
        processes = 1
        """
    )
    first = await installation.start()
    told = await assert_refused(installation, 78, f"is in use by the supervisor with pid {first.pid}")
    assert "stop that one, or give this one a data_dir of its own" in told
    assert "server.json" in told
    # The first one has noticed nothing.
    assert (await installation.command("run", "greeting", "Bob")).stdout == '"hello Bob"\n'
    assert zombies(first.pid) == []
    assert await first.stop() == 0


async def test_a_data_directory_that_cannot_be_used_is_named(installation: Installation) -> None:
    (installation.directory / "data").write_text("a file")
    installation.configure(
        """
        [supervisor]
        modules = ["tests._support.acceptance_app"]
        [nats.embedded]
        data_dir = "data"
        """
    )
    await assert_refused(installation, 78, "data", "[nats.embedded] data_dir", "Not a directory")


async def test_without_a_server_the_command_lists_where_it_looked(installation: Installation) -> None:
    done = await installation.command("list")
    assert done.code == 78
    for place in ("--url", "--config", "DURABLEFUTURE_NATS_URL", "./supervisor.toml", "server.json"):
        assert place in done.stderr


async def test_a_namespace_that_nobody_has_set_up_is_told_after_a_while(
    installation: Installation, nats: NatsServer
) -> None:
    done = await installation.command("--url", nats.url, "--namespace", "nowhere", "list")
    assert done.code == 78
    assert "namespace 'nowhere' does not exist on this server: start a supervisor for it" in done.stderr


# --- no room ----------------------------------------------------------------------------------------------------------


async def start_for_ever(client: Client, handles: list[WorkflowHandle[int]]) -> None:
    """Each of these leaves 300 KB in the store. One that is stored while its commit finds no room waits for that."""
    while True:
        with trio.move_on_after(2.0):
            handles.append(await client.start(app.large_result_of_activity, 300_000))


async def test_while_the_store_is_full_nothing_is_acknowledged_and_afterwards_everything_completes(
    installation: Installation,
) -> None:
    async with nats_server(max_file_store=16 * 1024 * 1024) as server:
        configure(installation, f'url = "{server.url}"')
        process = await installation.start()
        async with installation.client() as client:
            handles: list[WorkflowHandle[int]] = []
            with pytest.raises(RequestFailedError, match=r"JetStream has no room left.*Nothing was stored") as caught:
                await start_for_ever(client, handles)
            assert "Free disk space" in str(caught.value)
            await process.logged("the server's store is full; commits wait", deadline_s=30)
            done: set[str] = set()

            async def wait(handle: WorkflowHandle[int]) -> None:
                assert await handle.result() == 300_000
                done.add(handle.id)

            async with trio.open_nursery() as nursery:
                for handle in handles:
                    nursery.start_soon(wait, handle)
                await until(lambda: done, "the first results")
                # Room is made. (A little was there again and again: finished runs leave the inbox.)
                store = {"store_dir": str(server.directory / "store"), "max_file_store": 2**30}
                await server.restart(jetstream=store)
                with trio.fail_after(60):
                    await until(lambda: len(done) == len(handles), "every result", deadline_s=50)
            # What had run was kept until there was room for it: nothing ran twice.
            for handle in handles:
                assert [item.type for item in await handle.history()].count("ActivityScheduled") == 1
        # An operator is told, and not drowned: many commits wait.
        assert process.log.count("the server's store is full") <= 2 * 4
        assert await process.stop() == 0
