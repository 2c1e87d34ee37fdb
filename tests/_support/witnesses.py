"""What activities really did; see there."""

from __future__ import annotations

from simulator.storm.witnesses import DIRECTORY_VARIABLE, Witness, directory, gate_path, read_witnesses, witnessed

__all__ = ["DIRECTORY_VARIABLE", "Witness", "directory", "gate_path", "read_witnesses", "witnessed"]
