"""How pages write states, money and time: one way each."""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache

from django import template
from django.conf import settings
from django.forms import BoundField
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from billing.models import AutomaticTopUp, Payment, Payout
from marketplace import declines, money, restarts
from marketplace.models import (
    Attempt,
    AttemptState,
    Claim,
    ClaimState,
    Job,
    JobState,
    Reservation,
    ReservationState,
    Task,
    TaskState,
)
from marketplace.portal import words
from marketplace.portal.icons import ICONS
from provisioning import told as kept_texts
from provisioning.models import GIB, Instance, InstanceEvent, Phase, Reason, Volume

register = template.Library()

MIB = 1024**2
SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1000, 60_000, 3_600_000, 86_400_000

# Each phase has an icon beside its word and its colour, so that none of the three has to be seen.
PHASES: dict[Phase, tuple[str, str]] = {
    Phase.QUEUED: ("moving", "clock"),
    Phase.PLACING: ("moving", "loader"),
    Phase.PROVISIONING: ("moving", "loader"),
    Phase.VERIFYING: ("moving", "loader"),
    Phase.RUNNING: ("good", "play"),
    Phase.STOPPING: ("moving", "loader"),
    Phase.STOPPED: ("quiet", "stop"),
    Phase.NOTIFIED: ("warn", "alert"),
    Phase.DRAINING: ("warn", "alert"),
    Phase.INTERRUPTED: ("warn", "pause"),
    Phase.TERMINATING: ("moving", "loader"),
    Phase.TERMINATED: ("quiet", "minus"),
    Phase.FAILED: ("bad", "alert"),
}


@register.simple_tag
@cache
def icon(name: str) -> SafeString:
    """Draw an icon that stands beside its word, so it is hidden from who listens."""
    inner = mark_safe(ICONS[name])  # noqa: S308  our own drawings
    return format_html(
        '<svg class="icon icon-{}" viewBox="0 0 24 24" aria-hidden="true" focusable="false">{}</svg>', name, inner
    )


@register.simple_tag(takes_context=True)
def twice(context: template.Context, name: str) -> SafeString:
    """Draw a part of the frame that stands in it twice, for wide windows and for narrow ones; it is drawn once."""
    drawn: dict[str, SafeString] = context["frame"].drawn
    if name not in drawn:
        assert context.template is not None
        with context.push():
            drawn[name] = context.template.engine.get_template(name).render(context)
    return drawn[name]


@register.filter
def declined(row: Payment) -> str:
    """Write why a payment failed, in the reader's language."""
    return declines.said(row.failure_code, row.failure_text)


@register.filter
def paused(rule: AutomaticTopUp) -> str:
    """Write why automatic top-up is paused, in the reader's language."""
    return declines.said(rule.paused_code, rule.paused_because)


@register.simple_tag
def badge(text: str, tone: str = "quiet", name: str = "info") -> SafeString:
    """Write a state as icon, word and colour. Tones: good, moving, warn, bad, quiet."""
    return format_html('<span class="state state-{}">{}<span>{}</span></span>', tone, icon(name), text)


@register.simple_tag
def phase(instance: Instance) -> SafeString:
    """Write where an instance stands."""
    if instance.is_charged and instance.health == Instance.Health.UNREACHABLE:
        return badge(instance.get_health_display(), "warn", "alert")
    return badge(instance.get_phase_display(), *PHASES[Phase(instance.phase)])


BID_STATES: dict[str, tuple[Promise, str, str]] = {
    "waiting": (gettext_lazy("Waiting"), "moving", "clock"),
    "unfunded": (gettext_lazy("Without funds"), "bad", "alert"),
    "excluded": (gettext_lazy("Kept out by a policy"), "bad", "alert"),
    "left_out": (gettext_lazy("No place found"), "warn", "alert"),
    "won": (gettext_lazy("Won, starting"), "moving", "loader"),
    "running": (gettext_lazy("Running"), "good", "play"),
    "notified": (gettext_lazy("Interruption announced"), "warn", "alert"),
    "interrupted": (gettext_lazy("Interrupted"), "warn", "pause"),
    "resting": (gettext_lazy("Not bidding"), "quiet", "stop"),
    "ended": (gettext_lazy("Ended"), "quiet", "minus"),
}


@register.simple_tag
def bid_state(state: str) -> SafeString:
    """Write where a bid stands."""
    text, *look = BID_STATES[state]
    return badge(str(text), *look)


VOLUME_STATES: dict[Volume.State, tuple[str, str]] = {
    Volume.State.CREATING: ("moving", "loader"),
    Volume.State.AVAILABLE: ("good", "check"),
    Volume.State.ATTACHED: ("good", "play"),
    Volume.State.DELETING: ("warn", "trash"),
    Volume.State.DELETED: ("quiet", "minus"),
    Volume.State.FAILED: ("bad", "alert"),
}


@register.simple_tag
def volume_state(volume: Volume) -> SafeString:
    """Write where a volume stands."""
    is_alive = volume.state in {Volume.State.AVAILABLE, Volume.State.ATTACHED}
    if is_alive and volume.health != Volume.Health.OK:
        return badge(volume.get_health_display(), "warn", "alert")
    return badge(volume.get_state_display(), *VOLUME_STATES[Volume.State(volume.state)])


RESERVATION_STATES: dict[ReservationState, tuple[str, str]] = {
    ReservationState.PAYMENT_PENDING: ("moving", "loader"),
    ReservationState.PAYMENT_FAILED: ("bad", "alert"),
    ReservationState.SCHEDULED: ("good", "clock"),
    ReservationState.LOCKED: ("moving", "key"),
    ReservationState.ACTIVE: ("good", "play"),
    ReservationState.DELAYED: ("bad", "alert"),
    ReservationState.PARTIALLY_FULFILLED: ("warn", "alert"),
    ReservationState.ENDING: ("warn", "alert"),
    ReservationState.EXPIRED: ("quiet", "minus"),
    ReservationState.CANCELLED: ("quiet", "cross"),
    ReservationState.SOLD: ("quiet", "tag"),
}


@register.simple_tag
def reservation_state(reservation: Reservation) -> SafeString:
    """Write where a reservation stands."""
    return badge(reservation.get_state_display(), *RESERVATION_STATES[ReservationState(reservation.state)])


CLAIM_STATES: dict[str, tuple[str, str]] = {
    ClaimState.CLAIMED: ("moving", "loader"),
    ClaimState.VERIFIED: ("moving", "check"),
    ClaimState.FAILED: ("bad", "alert"),
    ClaimState.ACCEPTED: ("good", "check"),
    ClaimState.AUTO_ACCEPTED: ("good", "clock"),
    ClaimState.REJECTED: ("bad", "cross"),
    ClaimState.DISPUTED: ("warn", "alert"),
    ClaimState.UPHELD: ("good", "check"),
    ClaimState.PARTIAL: ("warn", "check"),
    ClaimState.SETTLED: ("good", "check"),
    ClaimState.REVERSED: ("quiet", "arrow"),
    ClaimState.VOIDED: ("quiet", "minus"),
}


@register.simple_tag
def claim_state(claim: Claim) -> SafeString:
    """Write where a claim stands."""
    return badge(claim.get_state_display(), *CLAIM_STATES[claim.state])


JOB_STATES: dict[JobState, tuple[str, str]] = {
    JobState.WAITING: ("moving", "clock"),
    JobState.ACTIVE: ("moving", "play"),
    JobState.ENDING: ("warn", "loader"),
    JobState.SUCCEEDED: ("good", "check"),
    JobState.FAILED: ("bad", "alert"),
    JobState.CANCELLED: ("quiet", "cross"),
}
TASK_STATES: dict[TaskState, tuple[str, str]] = {
    TaskState.PENDING: ("quiet", "clock"),
    TaskState.RUNNING: ("moving", "play"),
    TaskState.VERIFYING: ("warn", "loader"),
    TaskState.SUCCEEDED: ("good", "check"),
    TaskState.FAILED: ("bad", "alert"),
    TaskState.CANCELLED: ("quiet", "cross"),
}
ATTEMPT_STATES: dict[AttemptState, tuple[str, str]] = {
    AttemptState.RUNNING: ("moving", "play"),
    AttemptState.SUCCEEDED: ("good", "check"),
    AttemptState.FAILED: ("bad", "alert"),
    AttemptState.FAULTED: ("warn", "alert"),
    AttemptState.REFUSED: ("bad", "cross"),
    AttemptState.CANCELLED: ("quiet", "minus"),
}


@register.simple_tag
def job_state(job: Job) -> SafeString:
    """Write where a job stands."""
    return badge(job.get_state_display(), *JOB_STATES[JobState(job.state)])


@register.filter
def job_state_name(value: str) -> str:
    """Return the word of a job's state."""
    return str(JobState(value).label)


@register.simple_tag
def task_state(task: Task) -> SafeString:
    """Write where a task stands."""
    return badge(task.get_state_display(), *TASK_STATES[TaskState(task.state)])


@register.simple_tag
def attempt_state(attempt: Attempt) -> SafeString:
    """Write how an attempt went."""
    return badge(attempt.get_state_display(), *ATTEMPT_STATES[AttemptState(attempt.state)])


@register.simple_tag
def seconds(count: int) -> str:
    """Write a time span that is kept in seconds."""
    return duration(count * SECOND_MS)


PAYOUT_STATES: dict[Payout.State, tuple[str, str]] = {
    Payout.State.CREATED: ("moving", "clock"),
    Payout.State.SENDING: ("moving", "loader"),
    Payout.State.UNKNOWN: ("warn", "loader"),
    Payout.State.PAID: ("good", "check"),
    Payout.State.FAILED: ("bad", "alert"),
    Payout.State.CANCELLED: ("quiet", "minus"),
    Payout.State.REVERSING: ("warn", "loader"),
    Payout.State.REVERSED: ("quiet", "arrow"),
}


@register.simple_tag
def payout_state(payout: Payout) -> SafeString:
    """Write where a payout stands."""
    return badge(payout.get_state_display(), *PAYOUT_STATES[Payout.State(payout.state)])


@register.filter
def percent(basis_points: int) -> str:
    """Write basis points as a percentage."""
    whole, rest = divmod(basis_points, 100)
    return f"{whole}.{rest:02d}\u00a0%" if rest else f"{whole}\u00a0%"


@register.filter
def moment_of(text: str) -> datetime:
    """Return the time that a row keeps as text."""
    return datetime.fromisoformat(text)


@register.filter(name="bytes")
def bytes_in_words(count: int | None) -> str:
    """Write a number of bytes in GiB or MiB; what was not measured is a dash and never zero."""
    if count is None:
        return "–"
    if count < GIB:
        return f"{count / MIB:.0f} MiB"
    return f"{count / GIB:.1f} GiB"


@register.filter
def told(row: Instance | InstanceEvent) -> str:
    """Write the message of an instance or of an event in the reader's language, where we have it as a code."""
    return restarts.told(row)


@register.filter
def in_words(message: str) -> str:
    """Write what an event says in the reader's language, where it is a text of ours."""
    return kept_texts.shown(message)


@register.filter
def hindrance(message: str) -> str:
    """Write in the reader's language why something does not start."""
    return kept_texts.refused(message)


@register.filter
def health_reason(text: str) -> str:
    """Write why a part is to be repaired."""
    return words.health_reason(text)


@register.filter
def phase_name(value: str) -> str:
    """Return the word of a phase."""
    return str(Phase(value).label) if value else ""


@register.filter
def reason_name(value: str) -> str:
    """Return the words of a reason."""
    return str(Reason(value).label)


@register.filter
def amount(micros: int, currency: str) -> str:
    """Write money to the currency's minor unit."""
    return money.shown(micros, currency)


@register.filter
def rate(micros: int, currency: str) -> str:
    """Write money with as many places as it needs, for prices and amounts below a cent."""
    return money.shown(micros, currency, exact=True)


@register.filter
def brief(micros: int, currency: str) -> str:
    """Write money short, where the exact amount stands beside it or in a title."""
    return money.brief(micros, currency)


@register.filter
def duration(milliseconds: int | None) -> str:
    """Write a time span in at most two units, such as `2 min 5 s`."""
    if milliseconds is None:
        return "–"
    if milliseconds < 10 * SECOND_MS:
        return _("%(n)s s") % {"n": f"{milliseconds // 100 / 10:.1f}"}
    if milliseconds < MINUTE_MS:
        return _("%(n)s s") % {"n": milliseconds // SECOND_MS}
    if milliseconds < HOUR_MS:
        minutes, rest = divmod(milliseconds, MINUTE_MS)
        return _("%(n)s min %(m)s s") % {"n": minutes, "m": rest // SECOND_MS}
    if milliseconds < DAY_MS:
        hours, rest = divmod(milliseconds, HOUR_MS)
        return _("%(n)s h %(m)s min") % {"n": hours, "m": rest // MINUTE_MS}
    days, rest = divmod(milliseconds, DAY_MS)
    return _("%(n)s d %(m)s h") % {"n": days, "m": rest // HOUR_MS}


@register.simple_tag
def lease_time(kind: str) -> str:
    """Write how long an instance with this lease may run on without contact: `2 minutes`, or `90 seconds`."""
    minutes, rest = divmod(settings.ASSIGNMENT_LEASE_S[kind], 60)
    if not rest:
        return ngettext("%(n)s minute", "%(n)s minutes", minutes) % {"n": minutes}
    seconds = settings.ASSIGNMENT_LEASE_S[kind]
    return ngettext("%(n)s second", "%(n)s seconds", seconds) % {"n": seconds}


@register.simple_tag
def since(begin: datetime, end: datetime) -> str:
    """Write how long it is from one moment to another."""
    return duration(max(0, int((end - begin).total_seconds() * 1000)))


@register.simple_tag
def moment(at: datetime | None, how: str = "minute") -> SafeString:
    """Write a time in the reader's zone; its title has it in UTC. `how`: minute, second or day."""
    if at is None:
        return mark_safe("–")
    shape = {"minute": "%Y-%m-%d %H:%M", "second": "%Y-%m-%d %H:%M:%S", "day": "%Y-%m-%d"}[how]
    utc = at.astimezone(UTC)
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        utc.isoformat(timespec="milliseconds"),
        f"{utc:%Y-%m-%d %H:%M:%S} UTC",
        f"{timezone.localtime(at):{shape}}",
    )


@register.filter
def gpus(count: int) -> str:
    """Write a number of GPUs."""
    return ngettext("%(count)s GPU", "%(count)s GPUs", count) % {"count": count}


@register.filter
def downloaded(count: int) -> str:
    """Write a number of bytes as downloads are told: in powers of a thousand, with three digits that count."""
    value, unit = Decimal(count), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, bigger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


@register.filter
def shell(command: Sequence[str]) -> str:
    """Write a command as one would type it."""
    return shlex.join(command)


@register.filter
def country(code: str) -> str:
    """Write a country's name."""
    return words.country(code)


@register.filter
def power_source(source: str) -> str:
    """Write what feeds a site."""
    return words.power_source(source)


@register.filter
def is_renewable(source: str) -> bool:
    """Return whether a site's power is renewable."""
    return source in words.RENEWABLE


@register.filter
def styled(field: BoundField) -> SafeString:
    """Draw a form's field in our look; one with errors points to them."""
    css = "form-check-input" if field.widget_type == "checkbox" else "form-control"
    attrs: dict[str, str | bool] = {"class": css}
    if field.errors:
        told_by = [f"{field.id_for_label}-error", *([f"{field.auto_id}_helptext"] if field.help_text else [])]
        attrs |= {"class": f"{css} is-invalid", "aria-describedby": " ".join(told_by)}
    return field.as_widget(attrs=attrs)


@register.filter
def ppm(millionths: int) -> str:
    """Write a share of time as percent, rounded down, such as `99.95 %`: what falls short is never rounded away."""
    return f"{millionths // 10_000}.{millionths % 10_000 // 100:02}\u00a0%"


@register.filter
def utc_month(at: datetime) -> str:
    """Write the UTC month of a moment, such as `2026-11`."""
    return f"{at.astimezone(UTC):%Y-%m}"


@register.filter
def utc_day(at: datetime) -> str:
    """Write the UTC day of a moment, such as `2026-11-27`."""
    return f"{at.astimezone(UTC):%Y-%m-%d}"
