"""Every decision, as pure functions over frozen values with ``now`` passed in.

Start at ``planner.plan(desired, observed, now)``. ``desired`` is what manifests ask, ``observed`` what the catalog and
the sources say; ``calendars`` knows slots and windows, ``retention`` which copies a rule keeps, ``expiry`` which may
leave, ``promises`` and ``destructions`` what a brake holds until somebody approves it, ``lifecycles`` which copies are
owed, ``dispatch`` what may start now, ``configuration`` what a revision changes, ``planfile`` the plan as a document.
"""
