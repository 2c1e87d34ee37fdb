"""A model of JetStream in memory, at its worst: late publishes, lost acknowledgements, stale reads, racing fires."""
