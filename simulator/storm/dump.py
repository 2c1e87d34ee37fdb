"""Histories and words in a file, for people."""

from __future__ import annotations

from pathlib import Path

from durablefuture_trio.history.commit import decode_commit
from simulator.oracle import Evidence


def dump(evidence: Evidence, path: Path) -> None:
    """Write all of the evidence but the code."""
    with path.open("w", encoding="utf-8") as file:
        for stored in evidence.histories:
            commit = decode_commit(stored.body)
            file.write(f"{stored.subject} #{stored.seq} at {stored.time}\n")
            file.writelines(f"    {event}\n" for event in commit.events)
        file.writelines(f"{ran}\n" for ran in evidence.ran)
        file.writelines(f"{told}\n" for told in evidence.told)
        file.writelines(f"{workflow_id} has to end {how}\n" for workflow_id, how in evidence.expected.items())
        file.writelines(f"left: {item}\n" for item in evidence.left)
