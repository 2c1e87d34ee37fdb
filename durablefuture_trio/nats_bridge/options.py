"""How to reach NATS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ConnectOptions:
    """Where the servers are and who asks. Of the credentials, give at most one kind.

    Attributes:
        urls: one or more ``nats://`` or ``tls://`` addresses; user information in them is used too.
        user, password: user and password.
        token: a token.
        credentials_file: a ``.creds`` file (JWT and seed; needs the package ``nkeys``).
        nkey_seed_file: a file with an nkey seed (needs the package ``nkeys``).
        tls_ca_file: certificate authorities to trust instead of the system's.
        tls_cert_file, tls_key_file: the client certificate and its key.
        tls_hostname: the name the server's certificate has to have, instead of the address's.
        tls_handshake_first: start with the TLS handshake, for servers configured so.
        name: how the connection is called in the server's monitoring.
        inbox_prefix: where answers go; for accounts that may not use ``_INBOX``.
        answer_timeout_s: silence after a publish or request becomes `NoAnswer` after this time.
        connect_timeout_s: how long to go on trying to get the first connection.
        attempt_timeout_s: how long one attempt may take.
    """

    urls: tuple[str, ...]
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials_file: Path | None = None
    nkey_seed_file: Path | None = None
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_hostname: str | None = None
    tls_handshake_first: bool = False
    name: str = "durablefuture"
    inbox_prefix: str = "_INBOX"
    answer_timeout_s: float = 5.0
    connect_timeout_s: float = 10.0
    attempt_timeout_s: float = 2.0

    @property
    def uses_tls(self) -> bool:
        """Whether anything about TLS is configured: then a plain connection is refused."""
        return (
            any((self.tls_ca_file, self.tls_cert_file, self.tls_hostname, self.tls_handshake_first))
            or any(url.startswith("tls://") for url in self.urls)
        )  # fmt: skip

    def tls_context(self) -> ssl.SSLContext | None:
        """The context for TLS, None if nothing about it is configured.

        Raises:
            OSError, ssl.SSLError: a file cannot be read or used.
        """
        if not self.uses_tls:
            return None
        context = ssl.create_default_context(cafile=self.tls_ca_file)
        if self.tls_cert_file is not None:
            context.load_cert_chain(self.tls_cert_file, self.tls_key_file)
        return context

    def __repr__(self) -> str:
        return f"ConnectOptions(urls={self.safe_urls()!r}, name={self.name!r})"

    def safe_urls(self) -> str:
        """The addresses, without user information, for messages."""
        return ", ".join(url if "@" not in url else f"nats://{url.rsplit('@', 1)[1]}" for url in self.urls)
