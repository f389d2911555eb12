"""How pages write states, money and time: one way each."""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from django import template
from django.conf import settings
from django.forms import BoundField
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from billing.models import Payout
from marketplace import money, restarts
from marketplace.models import Reservation, ReservationState
from marketplace.portal import words
from marketplace.portal.icons import ICONS
from provisioning.models import GIB, Instance, InstanceEvent, Phase, Reason, Volume

register = template.Library()

MIB = 1024**2
SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1000, 60_000, 3_600_000, 86_400_000

# Each phase has an icon beside its word and its colour, so that none of the three has to be seen.
PHASES: dict[Phase, tuple[str, str]] = {
    Phase.QUEUED: ("clock", "moving"),
    Phase.PLACING: ("loader", "moving"),
    Phase.PROVISIONING: ("loader", "moving"),
    Phase.VERIFYING: ("loader", "moving"),
    Phase.RUNNING: ("play", "good"),
    Phase.STOPPING: ("loader", "moving"),
    Phase.STOPPED: ("stop", "quiet"),
    Phase.NOTIFIED: ("alert", "warn"),
    Phase.DRAINING: ("alert", "warn"),
    Phase.INTERRUPTED: ("pause", "warn"),
    Phase.TERMINATING: ("loader", "moving"),
    Phase.TERMINATED: ("minus", "quiet"),
    Phase.FAILED: ("alert", "bad"),
}


@register.simple_tag
def icon(name: str) -> SafeString:
    """Draw an icon that stands beside its word, so it is hidden from who listens."""
    inner = mark_safe(ICONS[name])  # noqa: S308  our own drawings
    return format_html(
        '<svg class="icon icon-{}" viewBox="0 0 24 24" aria-hidden="true" focusable="false">{}</svg>', name, inner
    )


@register.simple_tag
def badge(text: str, tone: str = "quiet", name: str = "info") -> SafeString:
    """Write a state as icon, word and colour. Tones: good, moving, warn, bad, quiet."""
    return format_html('<span class="state state-{}">{}<span>{}</span></span>', tone, icon(name), text)


@register.simple_tag
def phase(instance: Instance) -> SafeString:
    """Write where an instance stands."""
    name, tone = PHASES[Phase(instance.phase)]
    if instance.is_charged and instance.health == Instance.Health.UNREACHABLE:
        return badge(instance.get_health_display(), "warn", "alert")
    return badge(instance.get_phase_display(), tone, name)


BID_STATES: dict[str, tuple[Promise, str, str]] = {
    "waiting": (gettext_lazy("Waiting"), "clock", "moving"),
    "unfunded": (gettext_lazy("Without funds"), "alert", "bad"),
    "excluded": (gettext_lazy("Kept out by a policy"), "alert", "bad"),
    "won": (gettext_lazy("Won, starting"), "loader", "moving"),
    "running": (gettext_lazy("Running"), "play", "good"),
    "notified": (gettext_lazy("Interruption announced"), "alert", "warn"),
    "interrupted": (gettext_lazy("Interrupted"), "pause", "warn"),
    "resting": (gettext_lazy("Not bidding"), "stop", "quiet"),
    "ended": (gettext_lazy("Ended"), "minus", "quiet"),
}


@register.simple_tag
def bid_state(state: str) -> SafeString:
    """Write where a bid stands."""
    text, name, tone = BID_STATES[state]
    return badge(str(text), tone, name)


VOLUME_STATES: dict[Volume.State, tuple[str, str]] = {
    Volume.State.CREATING: ("loader", "moving"),
    Volume.State.AVAILABLE: ("check", "good"),
    Volume.State.ATTACHED: ("play", "good"),
    Volume.State.DELETING: ("trash", "warn"),
    Volume.State.DELETED: ("minus", "quiet"),
    Volume.State.FAILED: ("alert", "bad"),
}


@register.simple_tag
def volume_state(volume: Volume) -> SafeString:
    """Write where a volume stands."""
    name, tone = VOLUME_STATES[Volume.State(volume.state)]
    is_alive = volume.state in {Volume.State.AVAILABLE, Volume.State.ATTACHED}
    if is_alive and volume.health != Volume.Health.OK:
        return badge(volume.get_health_display(), "warn", "alert")
    return badge(volume.get_state_display(), tone, name)


RESERVATION_STATES: dict[ReservationState, tuple[str, str]] = {
    ReservationState.PAYMENT_PENDING: ("loader", "moving"),
    ReservationState.PAYMENT_FAILED: ("alert", "bad"),
    ReservationState.SCHEDULED: ("clock", "good"),
    ReservationState.LOCKED: ("key", "moving"),
    ReservationState.ACTIVE: ("play", "good"),
    ReservationState.DELAYED: ("alert", "bad"),
    ReservationState.PARTIALLY_FULFILLED: ("alert", "warn"),
    ReservationState.ENDING: ("alert", "warn"),
    ReservationState.EXPIRED: ("minus", "quiet"),
    ReservationState.CANCELLED: ("cross", "quiet"),
    ReservationState.SOLD: ("tag", "quiet"),
}


@register.simple_tag
def reservation_state(reservation: Reservation) -> SafeString:
    """Write where a reservation stands."""
    name, tone = RESERVATION_STATES[ReservationState(reservation.state)]
    return badge(reservation.get_state_display(), tone, name)


PAYOUT_STATES: dict[Payout.State, tuple[str, str]] = {
    Payout.State.CREATED: ("clock", "moving"),
    Payout.State.SENDING: ("loader", "moving"),
    Payout.State.UNKNOWN: ("loader", "warn"),
    Payout.State.PAID: ("check", "good"),
    Payout.State.FAILED: ("alert", "bad"),
    Payout.State.CANCELLED: ("minus", "quiet"),
    Payout.State.REVERSING: ("loader", "warn"),
    Payout.State.REVERSED: ("arrow", "quiet"),
}


@register.simple_tag
def payout_state(payout: Payout) -> SafeString:
    """Write where a payout stands."""
    name, tone = PAYOUT_STATES[Payout.State(payout.state)]
    return badge(payout.get_state_display(), tone, name)


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
