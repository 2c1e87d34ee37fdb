"""How long waiters are patient. Answers and hints normally come at once; these only bound what a lost one costs."""

from __future__ import annotations

import random

LOOK_EVERY_S = 3.0
"""A waiter looks into the history this often: answers and hints are core messages and may be lost."""

LOOK_AT_LEAST_EVERY_S = 15.0
"""Who waits long for a run to close looks less and less often, down to this. A link that comes back makes it look."""

EXPLAIN_AFTER_S = 5.0
"""A request that is still undecided is explained in the log after this."""

ASK_AGAIN_AFTER_S = 10.0
"""A stored request whose decision is neither answered nor in the history is sent again (doubling up to the maximum):
the answer of a refusal is in no history. Each repetition is an inbox message, hence the growing pause."""

ASK_AGAIN_MAX_S = 300.0

LEADER_WITHIN_S = 30.0
"""A stream without a leader is asked again for so long: elections take seconds, and a server that is stopping tells so
for a moment before it goes."""

QUERY_AGAIN_AFTER_S = 1.0
"""A query that is not answered is sent again after this: it is stored nowhere, and costs next to nothing."""

RESEND_AFTER_S = 1.0
"""Pause before a publish of unknown outcome is repeated."""


def jittered(seconds: float) -> float:
    """`seconds` give or take a sixth, so that many waiters do not look at the same moment."""
    return seconds * random.uniform(5 / 6, 7 / 6)


NAMESPACE_WAIT_S = 10.0
"""How long a first connection waits for a supervisor that is starting at the same moment to set up the namespace."""
