"""One step of a sweep by itself: what fails keeps nothing behind it from its turn; the next sweep tries it again."""

from collections.abc import Callable

import structlog
from celery.exceptions import SoftTimeLimitExceeded


def tried(act: Callable[[], int], log: structlog.stdlib.BoundLogger, event: str, **whose: int | str) -> int:
    """Do it and return how much was done; log what nobody expected, as `event`."""
    try:
        return act()
    except SoftTimeLimitExceeded:
        raise
    except Exception:
        log.exception(event, **whose)
        return 0
