"""The fixture of the tests of the workflow language."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests._support.language import Mode, Play
from tests._support.language_elsewhere import Bundle, replay_elsewhere


@pytest.fixture(scope="session")
def histories() -> Iterator[list[Bundle]]:
    """Collects the histories of all tests; at the end they are replayed in a fresh process with another hash seed."""
    bundles: list[Bundle] = []
    yield bundles
    problems = replay_elsewhere(bundles)
    assert not problems, "\n".join(problems)


@pytest.fixture(params=["live", "replay", "killed"])
def play(request: pytest.FixtureRequest, histories: list[Bundle]) -> Iterator[Play]:
    """Performs scenes: undisturbed, replaying after every event, and with everything killed at random."""
    mode: Mode = request.param
    name = f"{request.node.parent.name}::{request.node.originalname}"
    play = Play(mode, name)
    yield play
    if mode != "replay" and play.replays_elsewhere:
        histories += play.bundles
