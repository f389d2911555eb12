"""Where nothing may run, or nothing new may start, because it is not paid for: one answer for everybody who stops."""

from datetime import datetime

from billing import watch


def stopped(*, at: datetime) -> list[int]:
    """Return the organizations of which nothing may run any more: their money is used up and their grace is over."""
    watch.look(at=at)
    return watch.used_up(at=at)
