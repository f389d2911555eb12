"""Blocks of GPUs in the future: on which terms they are sold, what was quoted, who holds which hours."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from billing.prepared import Steps, ask, insertion, values_of
from billing.public_ids import PublicIdField
from billing.wire import Asked, Value
from provisioning.errors import IllegalMove, StaleInstance
from provisioning.models.calendar import to_the

log = structlog.get_logger("marketplace.reservations")


class BlockTerms(models.Model):
    """On which terms blocks of an offer are sold: data, so that each quote carries them as they were.

    Its row is also the gate of the offer's resale market: whoever changes
    listings, or hours that could be listed, locks it first.
    """

    offer = models.OneToOneField("marketplace.Offer", models.CASCADE, primary_key=True, related_name="block_terms")
    is_sold = models.BooleanField(default=True)
    min_gpus = models.PositiveIntegerField(default=1)
    max_gpus = models.PositiveIntegerField(help_text="the most GPUs that one reservation may have")
    min_hours = models.PositiveIntegerField(default=1)
    max_hours = models.PositiveIntegerField()
    horizon_hours = models.PositiveIntegerField(help_text="how far ahead the end of a block may lie")
    lock_minutes = models.PositiveIntegerField(
        default=60, help_text="before the start: nothing is changed from then on"
    )
    discounts = models.JSONField(default=list, help_text="[hours, basis points]: from so many hours on, so much less")
    cancellation = models.JSONField(
        default=list, help_text="[hours, basis points]: up to so many hours before the start, this part is kept"
    )
    resale_fee_bp = models.PositiveIntegerField(default=500)
    resale_cutoff_minutes = models.PositiveIntegerField(default=60, help_text="before an hour: it is sold until then")
    ask_step_micros = models.PositiveIntegerField(default=10_000, help_text="asks are whole multiples of this")
    lend_share_bp = models.PositiveIntegerField(default=5000, help_text="of spot's revenue, to whoever lends")

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(min_gpus__gte=1, max_gpus__gte=F("min_gpus"), min_hours__gte=1)
                & Q(max_hours__gte=F("min_hours"), horizon_hours__gte=F("min_hours")),
                name="block_sizes_make_sense",
            ),
            models.CheckConstraint(
                condition=Q(resale_fee_bp__lte=10_000, lend_share_bp__lte=10_000, ask_step_micros__gte=1),
                name="block_shares_are_no_more_than_all",
            ),
        ]

    def __str__(self) -> str:
        return f"blocks of {self.offer}"


class Quote(models.Model):
    """A price with all its terms, good for a few minutes and for one use. It holds no capacity."""

    class Kind(models.TextChoices):
        PURCHASE = "purchase", _("Purchase")
        EXTENSION = "extension", _("Extension")
        CANCELLATION = "cancellation", _("Cancellation")

    public_id = PublicIdField(prefix="qte")
    kind = models.CharField(max_length=12, choices=Kind.choices, default=Kind.PURCHASE)
    # Quotes are found by their own id alone: an index of each of these would be written twice, when made and when used.
    project = models.ForeignKey("marketplace.Project", models.PROTECT, related_name="quotes", db_index=False)
    offer = models.ForeignKey("marketplace.Offer", models.PROTECT, related_name="+", db_index=False)
    reservation = models.ForeignKey(
        "marketplace.Reservation", models.PROTECT, null=True, related_name="quotes", db_index=False
    )
    price_version = models.ForeignKey("billing.PriceVersion", models.PROTECT, related_name="+", db_index=False)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    gpus = models.PositiveIntegerField()
    discount_bp = models.PositiveIntegerField(default=0)
    per_gpu_hour_micros = models.BigIntegerField(help_text="with its discount")
    total_micros = models.BigIntegerField(help_text="what is paid; for a cancellation, what is kept")
    refund_micros = models.BigIntegerField(default=0, help_text="what a cancellation gives back")
    terms = models.JSONField(help_text="as they were: cancellation costs, lock, notice, resale, lending")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [models.Index(fields=["expires_at"], name="quote_unused", condition=Q(used_at=None))]

    def __str__(self) -> str:
        return f"{self.kind} of {self.gpus} GPUs from {self.starts_at:%Y-%m-%d %H:%M}"

    @property
    def currency(self) -> str:
        return self.price_version.currency

    @property
    def hours(self) -> int:
        return (self.ends_at - self.starts_at) // timedelta(hours=1)

    @property
    def list_micros(self) -> int:
        """What it would cost without its discount."""
        return self.price_version.micros_per_unit_hour * self.gpus * self.hours


class ReservationState(models.TextChoices):
    """Where a reservation stands; what may follow is in `RESERVATION_MOVES`."""

    PAYMENT_PENDING = "payment_pending", _("Payment pending")
    PAYMENT_FAILED = "payment_failed", _("Payment failed")
    SCHEDULED = "scheduled", _("Scheduled")
    LOCKED = "locked", _("Starts soon")
    ACTIVE = "active", _("Active")
    DELAYED = "delayed", _("Delayed")
    PARTIALLY_FULFILLED = "partially_fulfilled", _("Partially fulfilled")
    ENDING = "ending", _("Ending")
    EXPIRED = "expired", _("Expired")
    CANCELLED = "cancelled", _("Cancelled")
    SOLD = "sold", _("Sold")


_State = ReservationState
RESERVATION_MOVES: dict[ReservationState, set[ReservationState]] = {
    _State.PAYMENT_PENDING: {_State.SCHEDULED, _State.PAYMENT_FAILED},
    _State.PAYMENT_FAILED: set(),
    _State.SCHEDULED: {_State.LOCKED, _State.CANCELLED, _State.SOLD},
    _State.LOCKED: {_State.ACTIVE, _State.DELAYED, _State.PARTIALLY_FULFILLED, _State.SOLD},
    _State.ACTIVE: {_State.ENDING, _State.DELAYED, _State.PARTIALLY_FULFILLED},
    _State.DELAYED: {_State.ACTIVE, _State.PARTIALLY_FULFILLED, _State.ENDING, _State.CANCELLED},
    _State.PARTIALLY_FULFILLED: {_State.ACTIVE, _State.DELAYED, _State.ENDING, _State.CANCELLED},
    _State.ENDING: {_State.ACTIVE, _State.EXPIRED},
    _State.EXPIRED: set(),
    _State.CANCELLED: set(),
    _State.SOLD: set(),
}
# It has begun, and its GPUs are there to be used.
USABLE = {_State.ACTIVE, _State.PARTIALLY_FULFILLED}
BEGUN = USABLE | {_State.DELAYED, _State.ENDING}
OVER = {_State.PAYMENT_FAILED, _State.EXPIRED, _State.CANCELLED, _State.SOLD}

MOVE = """
WITH moved AS (
    UPDATE marketplace_reservation
    SET state = %(new)s::text, state_since = %(at)s, message = %(message)s::text{changes}
    WHERE id = %(reservation)s AND state = %(old)s::text RETURNING id
)
INSERT INTO marketplace_reservationevent (reservation_id, at, old_state, new_state, message)
SELECT id, %(at)s, %(old)s::text, %(new)s::text, %(message)s::text FROM moved RETURNING id
"""

# Only what the till wrote down as paid makes it scheduled, with just these amounts.
SCHEDULE = """
WITH moved AS (
    UPDATE marketplace_reservation booked SET state = 'scheduled', state_since = %(at)s, message = '',
        promo_micros = paid.promo_micros, cash_micros = paid.amount_micros - paid.promo_micros
    FROM billing_prepaiditem paid
    WHERE booked.id = %(reservation)s AND booked.state = 'payment_pending' AND paid.key = %(payment)s::text
    RETURNING booked.id, booked.promo_micros, booked.cash_micros
), event AS (
    INSERT INTO marketplace_reservationevent (reservation_id, at, old_state, new_state, message)
    SELECT id, %(at)s, 'payment_pending', 'scheduled', '' FROM moved
)
SELECT promo_micros, cash_micros FROM moved
"""


class Reservation(models.Model):
    """GPUs of an offer for a project in hours to come, paid ahead. Which hours it holds is in its strips."""

    State = ReservationState

    public_id = PublicIdField(prefix="rsv")
    project = models.ForeignKey("marketplace.Project", models.PROTECT, related_name="reservations", db_index=False)
    offer = models.ForeignKey("marketplace.Offer", models.PROTECT, related_name="reservations", db_index=False)
    price_version = models.ForeignKey("billing.PriceVersion", models.PROTECT, related_name="+", db_index=False)
    # What its strips span, and the most that they hold in an hour: kept beside them for lists and sweeps.
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    gpus = models.PositiveIntegerField()
    locks_at = models.DateTimeField(help_text="nothing is changed from then on")
    state = models.CharField(max_length=20, choices=ReservationState.choices, default=ReservationState.PAYMENT_PENDING)
    state_since = models.DateTimeField()
    message = models.TextField(blank=True)
    terms = models.JSONField(default=dict, help_text="those of its quote")
    promo_micros = models.BigIntegerField(default=0, help_text="paid from promotional credit, ever")
    cash_micros = models.BigIntegerField(default=0, help_text="paid from cash, ever")
    missing_gpus = models.PositiveIntegerField(default=0, help_text="held and not to be had at the last look")
    earned_through = models.DateTimeField(help_text="hours before this one are delivered and earned")
    is_lent = models.BooleanField(default=False, help_text="what stands idle may be lent to spot")
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(starts_at__lt=F("ends_at")), name="reservation_ends_after_its_start"),
            models.CheckConstraint(
                condition=Q(promo_micros__gte=0, cash_micros__gte=0), name="reservation_was_paid_forwards"
            ),
        ]
        indexes = [
            models.Index(fields=["project", "-id"], name="reservation_newest_first"),
            models.Index(fields=["project", "ends_at", "starts_at"], name="reservation_in_time"),
            models.Index(
                fields=["locks_at"],
                name="reservation_to_begin",
                condition=Q(state__in=["payment_pending", "scheduled", "locked"]),
            ),
            models.Index(
                fields=["offer", "ends_at"],
                name="reservation_under_way",
                condition=Q(state__in=["active", "delayed", "partially_fulfilled", "ending"]),
            ),
        ]

    def __str__(self) -> str:
        return self.public_id

    @property
    def currency(self) -> str:
        return self.price_version.currency

    @property
    def paid_micros(self) -> int:
        """What was paid for it, ever."""
        return self.promo_micros + self.cash_micros

    def set_lent(self, is_lent: bool, *, at: datetime) -> None:
        """Lend from now on, or stop it, and keep since when."""
        Reservation.objects.filter(pk=self.pk).update(is_lent=is_lent)
        self.is_lent = is_lent
        if is_lent:
            self.lending_spells.create(starts_at=at)
        else:
            self._end_lending(at)

    def _end_lending(self, at: datetime) -> None:
        self.lending_spells.filter(ends_at=None).update(ends_at=at)

    def book(self, strips: Sequence["ReservationStrip"]) -> Steps[None]:
        """Write this new reservation, whose payment is pending, with its strips and first event. One statement."""
        assert self.state == ReservationState.PAYMENT_PENDING
        columns = zip(*((s.starts_at, s.ends_at, s.gpus, s.paid_micros, s.worth_micros) for s in strips), strict=True)
        words: dict[str, Value] = dict(
            zip(("begins", "ends", "counts", "paid", "worth"), map(list, columns), strict=True)
        )
        ((self.pk,),) = yield BOOK, {**values_of(self), **words}
        self._state.adding = False
        for strip in strips:
            strip.reservation = self

    def schedule(self, *, payment: str, at: datetime) -> Steps[None]:
        """Move it to scheduled with what was paid for it under this key; asked beside the payment, or after it.

        Raises StaleInstance when somebody else moved first, or where nothing was paid.
        """
        asked: Asked = SCHEDULE, {"reservation": self.pk, "payment": payment, "at": at}
        rows = (yield asked) or (yield asked)  # Once more, where the payment had to be asked twice.
        if not rows:
            raise StaleInstance(f"{self.public_id} is no longer {ReservationState.PAYMENT_PENDING}")
        ((self.promo_micros, self.cash_micros),) = rows
        self._moved(ReservationState.SCHEDULED, at=at)

    def move_to(self, state: ReservationState, *, at: datetime, message: str = "", **changes: int) -> None:
        """Change state if the map allows it, and write down that it happened.

        Raises IllegalMove when the map forbids it and StaleInstance when somebody else moved first.
        """
        old = ReservationState(self.state)
        if state not in RESERVATION_MOVES[old]:
            raise IllegalMove(f"{self.public_id}: {old} cannot become {state}")
        words: dict[str, Value] = {"reservation": self.pk, "old": old, "new": state, "at": at, "message": message}
        if not ask(MOVE.format(changes="".join(f", {name} = %({name})s" for name in changes)), {**words, **changes}):
            raise StaleInstance(f"{self.public_id} is no longer {old}")
        if self.is_lent and not changes.get("is_lent", True):
            self._end_lending(at)
        for name, value in changes.items():
            setattr(self, name, value)
        self._moved(state, at=at, message=message)

    def _moved(self, state: ReservationState, *, at: datetime, message: str = "") -> None:
        old, self.state, self.state_since, self.message = self.state, state, at, message
        log.info("moved", reservation=self.public_id, old=old, new=state)

    def note(self, message: str, *, at: datetime) -> None:
        """Tell the customer what happened to a reservation that stays as it is."""
        ReservationEvent.objects.create(
            reservation=self, at=at, old_state=self.state, new_state=self.state, message=message
        )


BOOK = f"""
WITH booked AS ({insertion(Reservation)} RETURNING id), strips AS (
    INSERT INTO marketplace_reservationstrip (reservation_id, starts_at, ends_at, gpus, paid_micros, worth_micros)
    SELECT booked.id, strip.* FROM booked, unnest(%(begins)s::timestamptz[], %(ends)s::timestamptz[], %(counts)s::int[],
        %(paid)s::bigint[], %(worth)s::bigint[]) AS strip
), event AS (
    INSERT INTO marketplace_reservationevent (reservation_id, at, old_state, new_state, message)
    SELECT id, %(created_at)s, '', 'payment_pending', '' FROM booked
)
SELECT id FROM booked
"""  # noqa: S608  nothing in it comes from outside


class ReservationStrip(models.Model):
    """So many GPUs in each hour from a start to an end, at one price. What a reservation holds is their sum.

    `paid_micros` is what its holder paid for a GPU-hour; `worth_micros` what
    the platform keeps for it until it is earned. They differ after a resale:
    the price was between the two customers.
    """

    reservation = models.ForeignKey(Reservation, models.CASCADE, related_name="strips")
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    gpus = models.PositiveIntegerField()
    paid_micros = models.BigIntegerField()
    worth_micros = models.BigIntegerField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(starts_at__lt=F("ends_at"), starts_at=to_the("hour", "starts_at"))
                & Q(ends_at=to_the("hour", "ends_at")),
                name="strip_is_whole_hours",
            ),
            models.CheckConstraint(
                condition=Q(gpus__gte=1, paid_micros__gte=0, worth_micros__gte=0), name="strip_holds_something"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.gpus} GPUs from {self.starts_at:%Y-%m-%d %H} to {self.ends_at:%Y-%m-%d %H}"


class ReservationEvent(models.Model):
    """One move of a reservation, or a note on it, which moves nothing."""

    reservation = models.ForeignKey(Reservation, models.CASCADE, related_name="events")
    at = models.DateTimeField()
    old_state = models.CharField(max_length=20, choices=ReservationState.choices, blank=True)
    new_state = models.CharField(max_length=20, choices=ReservationState.choices)
    message = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"{self.reservation}: {self.old_state} -> {self.new_state}"


class Shortfall(models.Model):
    """Evidence that GPUs of one hour could not be had, and what was given back for them."""

    reservation = models.ForeignKey(Reservation, models.CASCADE, related_name="shortfalls")
    hour = models.DateTimeField()
    gpus = models.PositiveIntegerField(help_text="the most that were missing at once within the hour")
    refund_micros = models.BigIntegerField()
    worth_micros = models.BigIntegerField(help_text="of what is given back, what the platform had kept for these hours")
    message = models.TextField()
    seen_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["reservation", "hour"], name="shortfall_once_per_hour"),
            models.CheckConstraint(condition=Q(gpus__gte=1), name="shortfall_misses_something"),
        ]

    def __str__(self) -> str:
        return f"{self.gpus} GPUs of {self.reservation} at {self.hour:%Y-%m-%d %H}"
