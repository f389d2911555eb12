"""Starting again elsewhere, by ourselves, what a fault of ours ended and whose customer asked for that."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import structlog
from django.db import transaction
from django.utils import translation
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy

from billing.errors import BillingError
from marketplace import audit, numbers, rentals
from marketplace.errors import MarketError
from provisioning.errors import ProvisioningError
from provisioning.models import INFRASTRUCTURE, Instance, InstanceEvent, Phase, Reason
from provisioning.told import refused, shown

log = structlog.get_logger("marketplace.restarts")

# How long each attempt within a day waits after the failure before it; there are no more than these.
BACK_OFF = (
    timedelta(0),
    timedelta(seconds=10),
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=15),
)
WINDOW = timedelta(hours=24)
# After a refusal, such as missing funds: this soon at first, and at longest after as long as it has failed already.
AGAIN_AFTER = timedelta(seconds=30)
AGAIN_AFTER_MAX = timedelta(minutes=30)
GIVES_UP_AFTER = timedelta(hours=24)

# Rows keep the code and its numbers; programs get the English, pages what the reader reads.
TEXTS: dict[str, Promise] = {
    "restarted": gettext_lazy(
        "Started again by itself (attempt %(attempt)s of %(most)s in 24 hours). Before: %(before)s "
        "Files are there only if they were on a volume."
    ),
    "restarts_used_up": gettext_lazy(
        "%(before)s It was started again %(attempts)s times in 24 hours and is not any more."
    ),
    "restart_given_up": gettext_lazy("%(before)s It could not be started again for 24 hours: %(refusal)s"),
    "restart_put_off": gettext_lazy("%(before)s Not started again yet, tried anew at %(time)s: %(refusal)s"),
}
ENGLISH = "en"


def told(row: Instance | InstanceEvent) -> str:
    """Return the message of a row in the reader's language: by its code, or by what it says."""
    notice = row.notice or {}
    text = TEXTS.get(str(notice.get("code")))
    if text is None or (translation.get_language() or ENGLISH).startswith(ENGLISH):
        return shown(row.message)
    why: dict[str, object] = {"before": Reason(notice["reason"]).label}
    if "refusal" in notice:
        why["refusal"] = refused(str(notice["refusal"]))
    # What a node or a refusal said stays behind it: nothing is lost in translation.
    said = f" ({shown(str(notice['before']))})" if notice.get("before") else ""
    return str(text) % (notice | why | {"before": f"{why['before']}{said}"})


def _written(notice: Mapping[str, object]) -> str:
    with translation.override(ENGLISH):
        return (str(TEXTS[str(notice["code"])]) % notice).strip()


def start_again(*, at: datetime, limit: int) -> int:
    """Start what is due for it, the longest waiting first; return how many were started. Safe to repeat."""
    due = Instance.objects.filter(phase=Phase.FAILED, restart_at__lte=at, quota_held=0)
    started = 0
    for instance_id in list(due.order_by("restart_at", "pk").values_list("pk", flat=True)[:limit]):
        try:
            started += _start_again(instance_id, at=at)
        except (BillingError, MarketError, ProvisioningError) as refusal:
            _put_off(instance_id, refusal, at=at)
    return started


@transaction.atomic
def _start_again(instance_id: int, *, at: datetime) -> bool:
    """Start one if it is still due: by the verbs of a customer's start, but at the price that it had."""
    related = Instance.objects.select_related("project__organization", "offer", "price_version")
    instance = related.get(pk=instance_id)
    if instance.phase != Phase.FAILED or instance.restart_at is None or instance.restart_at > at:
        return False
    attempts = attempts_of(instance, at=at)
    if attempts >= len(BACK_OFF):
        _tell(instance, {"code": "restarts_used_up", "attempts": attempts}, restart_at=None)
        return False
    if at < instance.phase_since + BACK_OFF[attempts]:
        Instance.objects.filter(pk=instance.pk).update(restart_at=instance.phase_since + BACK_OFF[attempts])
        return False
    rentals.check_open(instance.project)
    before = {"phase": instance.phase, "run": instance.run, "reason": instance.reason}
    why = Reason(instance.reason)
    notice: dict[str, object] = {"code": "restarted", "attempt": attempts + 1, "most": len(BACK_OFF)}
    notice |= {"before": instance.message, "reason": instance.reason}
    was_inside = instance.market == Instance.Market.RESERVED
    rentals.start_run(
        instance,
        price=None if was_inside else instance.price_version,
        # Outside it would cost by the hour: there only its customer starts it.
        stays_inside=was_inside,
        token=instance.ordered_with,
        at=at,
        reason=why,
        message=_written(notice),
        notice=notice,
        restarts=instance.restarts + 1,
    )
    audit.record_own(
        organization=instance.project.organization,
        verb="instance.restart",
        subject_id=instance.public_id,
        before=before,
        after={"run": instance.run, "attempt": attempts + 1},
    )
    log.info("restarted", instance=instance.public_id, reason=why, attempt=attempts + 1)
    return True


def attempts_of(instance: Instance, *, at: datetime) -> int:
    """Return how often we started it by ourselves within the last day; a customer's own start has no reason."""
    ours = InstanceEvent.objects.filter(instance=instance, new_phase=Phase.QUEUED, at__gt=at - WINDOW)
    return ours.filter(reason__in=[*INFRASTRUCTURE, Reason.NO_CAPACITY]).count()


def _put_off(instance_id: int, refusal: Exception, *, at: datetime) -> None:
    """Tell why it was not started, and try again later: seldom where that has been so for long, and not for ever."""
    instance = Instance.objects.get(pk=instance_id)
    waited = at - instance.phase_since
    said = numbers.said(refusal)
    log.warning("not restarted", instance=instance.public_id, refusal=said)
    if waited > GIVES_UP_AFTER:
        _tell(instance, {"code": "restart_given_up", "refusal": said}, restart_at=None)
        return
    again_at = at + min(max(waited, AGAIN_AFTER), AGAIN_AFTER_MAX)
    _tell(
        instance, {"code": "restart_put_off", "time": f"{again_at:%H:%M:%S} UTC", "refusal": said}, restart_at=again_at
    )


def _tell(instance: Instance, news: Mapping[str, object], *, restart_at: datetime | None) -> None:
    """Write after what ended it how its restart stands, in place of what was said before."""
    ended = InstanceEvent.objects.filter(instance=instance, new_phase=Phase.FAILED).order_by("-pk").first()
    notice = {**news, "before": ended.message if ended else instance.message, "reason": instance.reason}
    still = Instance.objects.filter(pk=instance.pk, phase=Phase.FAILED, run=instance.run)
    still.update(message=_written(notice), notice=notice, restart_at=restart_at)
