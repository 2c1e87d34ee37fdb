"""TLS with a certificate of our own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from durablefuture_trio.errors import BrokerUnavailableError
from durablefuture_trio.nats_bridge import ConnectOptions, open_broker
from durablefuture_trio.ports.broker import Append, StreamSpec
from tests._support.nats_server import NatsServer

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for the loopback address; the key lies beside it."""
    path = tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        [*command.split(), *names, "-keyout", tmp_path / "key.pem", "-out", path],
        check=True,
        capture_output=True,
    )
    return path


@pytest.mark.parametrize("handshake_first", [False, True])
async def test_everything_works_over_tls_also_after_a_reconnect(
    nats: NatsServer, certificate: Path, handshake_first: bool
) -> None:
    files = {"cert_file": str(certificate), "key_file": str(certificate.with_name("key.pem"))}
    await nats.restart(tls={**files, "handshake_first": handshake_first})
    options = ConnectOptions(urls=(nats.url,), tls_ca_file=certificate, tls_handshake_first=handshake_first)
    async with open_broker(options) as broker:
        await broker.provision([StreamSpec(name="H", subjects=("h.>",))])
        body = b"x" * 3_000_000
        assert await broker.append(Append(subject="h.a", body=body)) == 1
        await nats.restart()
        with trio.fail_after(20):
            seen = broker.link.generation
            while broker.link.generation < 3:
                seen = await broker.link.changed(seen)
        found = await broker.last("H", "h.a")
        assert found is not None
        assert found.body == body


async def test_a_certificate_that_is_not_trusted_is_refused_at_once(nats: NatsServer, certificate: Path) -> None:
    await nats.restart(tls={"cert_file": str(certificate), "key_file": str(certificate.with_name("key.pem"))})
    with trio.fail_after(20), pytest.raises(BrokerUnavailableError, match=r"certificate verify failed.*TLS settings"):
        async with open_broker(ConnectOptions(urls=(nats.url,), tls_hostname="localhost", connect_timeout_s=600)):
            pytest.fail("connected")
