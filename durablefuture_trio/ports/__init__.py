"""The sockets other parts plug into: a broker at the height of JetStream primitives, and child processes.

Protocol classes and plain records only; nothing here decides anything.
"""
