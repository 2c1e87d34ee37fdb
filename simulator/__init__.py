"""Whole clusters in one process, in virtual time, from one seed: supervisors, clients and the model of JetStream under
kills and faults, and the oracle that judges what came of it.

``python -m simulator --help`` runs lives; docs/reliability.md says what is simulated and what was found.
"""
