"""What lives have shown of each fix, and why some are shown by none."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.fixes.focus import asked, both, disturbed, likelier
from simulator.fixes.switch import Focus
from simulator.scenario import ClientPlan


@dataclass(frozen=True)
class Finding:
    """See the attributes of the same names of `Fix`."""

    caught_by: str = ""
    lives: int = 0
    focus: Focus | None = None
    focused: str = ""
    remark: str = ""


STUCK = "still wait|still open|goes round in circles"
LEFT = f"left behind|{STUCK}"
CIRCLES = "goes round in circles"
ENDS = "has no run|does not exist|is not known|" + STUCK

_IMPATIENT = asked(
    ClientPlan(at=0.5, workflow=0, action="run", execution_timeout=3.0),
    ClientPlan(at=1.5, workflow=0, action="run", execution_timeout=2.0),
    ClientPlan(at=3.0, workflow=0, action="run"),
)
_REPLACED = asked(
    ClientPlan(at=0.5, workflow=0, action="replace"),
    ClientPlan(at=2.0, workflow=0, action="replace"),
)
_TERMINATED = asked(
    ClientPlan(at=0.5, workflow=0, action="terminate"),
    ClientPlan(at=1.5, workflow=0, action="terminate"),
    ClientPlan(at=2.0, workflow=0, action="run"),
    ClientPlan(at=4.0, workflow=0, action="run"),
)
_STALLED = disturbed("stall", "unplug", count=8, within_s=20, seconds=(2.0, 7.0, 13.0))

FINDINGS: dict[str, Finding] = {
    # --- inboxes, commits, leases, clients ---
    "epoch in the consumer's name": Finding(
        LEFT,
        52,
        both(likelier(late_ack=0.6), disturbed("kill", count=8, within_s=20)),
        "more late acknowledgements and kills",
    ),
    "a schedule subject for each commit": Finding(
        remark="A parked run gets next to nothing but its own timer as long as there are no signals, and what is lost "
        "then is armed again (H19). Shown by test_h02, test_h03."
    ),
    "commits expect their number to be free": Finding(r"commits \[", 2),
    "identical bytes until the number is occupied": Finding(ENDS, 6),
    "commit ids": Finding(ENDS, 6),
    "a gap in the deliveries means a new epoch": Finding(
        remark="Covered: clients ask again, and overdue schedules are armed again (see the pair). Shown by test_h06."
    ),
    "gaps, and schedules that are armed again": Finding(STUCK, 35, likelier(lost_delivery=0.1), "more lost deliveries"),
    "no limit of unacknowledged messages": Finding(STUCK, 6),
    "all that waits is read before runs go on": Finding(
        remark="Without it work is repeated that was done; what a start leads to is covered by the commits' numbers."
    ),
    "leases are compared and set": Finding(
        remark="Two owners waste work only: commits and the consumers' epochs keep the rest right. Shown by test_h09."
    ),
    "silence counts only while one's own link answers": Finding(
        remark="A matter of time: shards change hands for nothing. Shown by test_h09."
    ),
    "an owner that is late suspends itself": Finding(remark="Two owners waste work only: commits keep the rest right."),
    "the epoch counts up": Finding(CIRCLES, 1),
    "answers that come while ownership is in doubt are kept": Finding(STUCK, 7),
    "results of a shard that is lost are handed over": Finding(
        remark="A matter of cost: the new owner repeats the attempt."
    ),
    "members that take no shards are left out": Finding(LEFT, 10),
    "clocks are compared before shards are taken": Finding(
        remark="A matter of time: the run's time stands still until the clock is right. Shown by test_h21."
    ),
    "owners go by the server's clock": Finding(STUCK, 10),
    "shards are spread evenly": Finding(remark="A matter of load. Shown by the tests of leases."),
    "owners are cautious after deaths": Finding(remark="No run of a life brings its owner down. Shown by test_h15."),
    "a history is read without gaps": Finding("KeyError|does not|" + LEFT, 28),
    "the tip is looked for upward": Finding(
        remark="Covered: a tip that is behind loses the commit, or is not confirmed (H16)."
    ),
    "overdue schedules are armed again": Finding(
        STUCK, 11, disturbed("full", count=8, within_s=30, seconds=(2.0, 7.0)), "a full store more often"
    ),
    "new owners read what was armed": Finding(LEFT, 40),
    "listing records are fenced": Finding(
        "is listed as",
        1,
        both(likelier(late_append=0.1), disturbed("kill", count=4, within_s=20)),
        "more late publishes and kills",
    ),
    "who waits for a decision looks in the history": Finding(
        remark="Covered: who gets no answer asks again, and is told what was decided. Shown by test_h20."
    ),
    "who waits for a result looks in the history": Finding(STUCK, 6),
    "undecided requests are sent again": Finding(STUCK, 6),
    "the message id is no workflow id": Finding(
        remark="Covered: a request that the server takes for a repetition is sent again after the window of two "
        "minutes. Shown by test_h10d."
    ),
    "a termination names its run": Finding(
        "terminate",
        11,
        both(likelier(lost_tell=0.3, late_append=0.1, lost_puback=0.2), _TERMINATED),
        "more terminations, and answers that are lost",
    ),
    # --- runs ---
    "one commit outstanding": Finding(STUCK, 1),
    "commit before effects": Finding("ran 2 times|never scheduled", 9),
    "attempts of a dead owner are repeated": Finding(STUCK, 6),
    "lost attempts are counted": Finding("ran 2 times", 6),
    "redelivery means redo": Finding(STUCK, 13),
    "redo: the schedule": Finding(STUCK, 6),
    "redo: the listing record": Finding("is listed as", 1),
    "redo: answers and close hints": Finding(remark="Covered: who waits looks in the history (H20)."),
    "redo: the activation": Finding(STUCK, 18),
    "what waited is known before a run goes on": Finding(
        remark="Rare: one life in 200, with more kills and late publishes, showed it before it was mended. Shown by "
        "test_h10c_what_waited_is_known_before_a_resumed_run_reaches_its_end."
    ),
    "the listing record is owed": Finding("is listed as", 1),
    "the consumed mark": Finding(
        remark="Covered by the request ids, as long as all requests have one. Shown by test_h10b without both."
    ),
    "request ids": Finding("refused to its client, and ran|times", 3),
    "requests are carried to the next run": Finding("refused to its client, and ran|times", 21),
    "refusals are recorded": Finding("refused to its client, and ran", 21),
    "starts that wait are refused when the run closes": Finding(
        "refused to its client, and ran",
        21,
        both(disturbed("kill", count=10, within_s=12), _IMPATIENT),
        "more starts and deadlines, more kills",
    ),
    "a termination that jumps the queue leaves the mark": Finding(
        remark="Covered: a request that is taken for decided and is not is asked again by its client. No test "
        "shows it either."
    ),
    "close and next start in one commit": Finding(
        remark="Covered: a client that waits for the successor asks again, and then it is started. Shown by test_h11d."
    ),
    "a run is committed before it is replaced": Finding(ENDS, 20),
    "nothing follows a terminal event in its commit": Finding(
        remark="What comes behind the end is decided against the closed run either way: no test shows it either."
    ),
    "commits are cut to size": Finding(remark="The commits of lives fit any message. Shown by test_h12."),
    "a commit is not cut inside a replacement": Finding(
        remark="The commits of lives fit any message. Shown by "
        "test_h11d_no_cut_comes_between_the_end_of_a_run_and_its_successor."
    ),
    "values that no message holds are failures": Finding(
        remark="The values of lives fit any message. Shown by test_h12."
    ),
    "twice in a batch": Finding(
        remark="Covered: its second copy is recognised by the mark, or by its request id. Shown by test_h13 "
        "without the mark."
    ),
    "late failures do not count": Finding(
        remark="Failures of older attempts do not come any more: only successes are handed over. Shown by the tests "
        "of decisions."
    ),
    "late successes count": Finding(remark="A matter of cost: the current attempt goes on."),
    "the run id is part of the key": Finding("never scheduled|ended|result", 35, _REPLACED, "more replaced runs"),
    "no dispatch for a closed run": Finding(
        remark="A matter of cost: what comes of such an attempt is dropped. No test shows it either."
    ),
    "a fire means that the time has come": Finding(STUCK, 1),
    "a timer's time is its deadline at least": Finding("again and again|" + STUCK, 1),
    "wake-up: the sandbox's deadline": Finding(STUCK, 1),
    "wake-up: retries": Finding(STUCK, 1),
    "wake-up: the execution deadline": Finding(
        remark="A matter of time: the run ends at its next wake-up instead. Shown by test_h21."
    ),
    "the time of a run never goes back": Finding(
        remark="Covered as long as owners go by the server's clock (see the pair)."
    ),
    "the time of a run, and the server's clock": Finding(
        "time went back", 7, disturbed("kill", count=4, within_s=10), "more kills"
    ),
    "an anchor while something is under way": Finding(STUCK, 1),
    "an anchor while attempts run": Finding(STUCK, 1),
    "an anchor for short timers": Finding(STUCK, 1),
    "parked only when armed": Finding(
        STUCK,
        43,
        both(likelier(late_append=0.2, dropped_append=0.2), disturbed("kill", count=8, within_s=30)),
        "more lost and late publishes, more kills",
    ),
    "a spent schedule subject is not used again": Finding(
        remark="Covered: a schedule that is purged by the fire before it is armed again as overdue (H19). Shown by the "
        "tests of settling."
    ),
    "acknowledged last: the end of a run": Finding("is listed as", 1),
    "acknowledged after the commit": Finding(STUCK, 1),
    "confirmed reads before acknowledgements": Finding(STUCK, 65),
    "activation numbers": Finding(
        "scheduled twice|does not|ended", 38, _STALLED, "more stopped processes and lost links"
    ),
    "a lost commit drops the sandbox's copy": Finding(
        remark="Covered by the activation numbers. Shown by the tests of the run owner."
    ),
    "a cancelled call in backoff is answered": Finding(CIRCLES, 15),
    "a slow start is committed ahead": Finding(remark="A matter of time: the client's answer. Shown by test_m12."),
}
