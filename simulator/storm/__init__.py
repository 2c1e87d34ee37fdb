"""Storms: real supervisors, children and nats-servers under SIGKILL, SIGSTOP and restarts, drawn from one seed and
judged by the oracle that judges simulated lives.

``python -m simulator.storm --help`` makes them; docs/reliability.md says what is disturbed and what has to hold.
"""
