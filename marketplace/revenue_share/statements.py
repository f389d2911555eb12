"""Revenue statements: what a customer earned in a period, by program, file or hand; a new one corrects the last."""

import csv
import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from django.db import transaction
from django.utils.translation import gettext as _

from marketplace import audit
from marketplace.access import Actor
from marketplace.errors import BadOrder, IllegalState, NotFound
from marketplace.models import ContractVersion, Organization, RevenuePeriod, RevenueStatement
from marketplace.money import typed_micros
from provisioning.agent import signing

Source = RevenueStatement.Source
State = RevenuePeriod.State
LINES_MAX = 10_000
LABEL_MAX = 200
WHOLE_DIGITS_MAX = 12
PERIOD = re.compile(r"(\d{4})-(\d{2})(?:-(\d{2}))?", re.ASCII)
COLUMNS = ["label", "amount"]

Line = tuple[str, int]


@transaction.atomic
def submit(
    *,
    actor: Actor,
    period: RevenuePeriod,
    revenue_micros: int,
    lines: Sequence[Line],
    source: Source,
    at: datetime,
) -> RevenueStatement:
    """Say what was earned in a period; what was said last counts when it is charged.

    `lines`, where there are any, add up to the revenue. What is sent twice is said once. Raises IllegalState for a
    period that is closed.
    """
    period = RevenuePeriod.objects.select_for_update(no_key=True, of=("self",)).get(pk=period.pk)
    if period.state == State.CLOSED:
        raise IllegalState(
            _("%(period)s is closed; nothing was changed or charged. Ask the seller about a correction.")
            % {"period": period.label}
        )
    if revenue_micros < 0:
        raise BadOrder("revenue", _("Revenue is not negative."))
    total = sum(micros for _label, micros in lines)
    if lines and total != revenue_micros:
        raise BadOrder("lines", _("The lines do not add up to the revenue."))
    last = period.statements.order_by("-number").first()
    token, said = actor.token.public_id if actor.token else "", [list(line) for line in lines]
    now = (revenue_micros, said, source, actor.user.pk, token)
    if last is not None and (last.revenue_micros, last.lines, last.source, last.by_id, last.token) == now:
        return last
    number = 1 if last is None else last.number + 1
    # Micros are texts in it, because they may be larger than the numbers that everybody reads alike.
    body = {
        "period": period.public_id, "number": number, "revenue_micros": str(revenue_micros),
        "lines": [[label, str(micros)] for label, micros in lines],
    }  # fmt: skip
    made = RevenueStatement.objects.create(
        period=period,
        number=number,
        revenue_micros=revenue_micros,
        lines=said,
        sha256=signing.digest(body),
        source=source,
        by=actor.user,
        by_name=actor.name,
        token=token,
        at=at,
    )
    audit.record(
        actor=actor, organization=period.organization, verb="revenue.state", subject_id=made.public_id,
        after={"period": period.label, "number": number, "sha256": made.sha256},
    )  # fmt: skip
    return made


def period_of(organization: Organization, version_id: str, label: str) -> RevenuePeriod:
    """Return the period of a contract's version by its name, such as `2026-11`.

    Raises NotFound for a version that the organization did not agree to, BadOrder for a period that never began.
    """
    if not RevenuePeriod.objects.filter(version__public_id=version_id, organization=organization).exists():
        if ContractVersion.objects.filter(
            public_id=version_id, acceptances__organization=organization, contract__kind="revenue_share"
        ).exists():
            raise BadOrder("period", _("No period of this contract has begun yet; try again in some minutes."))
        raise NotFound("contract")
    found = RevenuePeriod.objects.filter(
        version__public_id=version_id, organization=organization, starts_at=_begin(label)
    )
    period = found.select_related("organization", "version__contract").first()
    if period is None or period.label != label:
        raise BadOrder("period", _("There is no such period. Write 2026-11, or 2026-11-26 where periods are days."))
    return period


def lines_of(text: str) -> list[Line]:
    """Return the lines of a CSV file with the columns label and amount; raise BadOrder naming the line at fault."""
    rows = list(csv.reader(io.StringIO(text.lstrip("\ufeff"))))
    if not rows or [cell.strip().lower() for cell in rows[0]] != COLUMNS:
        raise BadOrder("csv", _("Line 1: the columns are label and amount."))
    lines = [_line(number, row) for number, row in enumerate(rows[1:], start=2) if row]
    return checked(lines, "csv")


def checked(lines: Sequence[Line], field: str) -> list[Line]:
    """Return lines that are not too many, or raise BadOrder."""
    if len(lines) > LINES_MAX:
        raise BadOrder(field, _("Send %(most)s lines at most; sum up what is alike.") % {"most": f"{LINES_MAX:,}"})
    return list(lines)


def amount_of(text: str, field: str) -> int:
    """Return the micros of an amount, or raise BadOrder naming its field."""
    micros = typed_micros(text.strip(), whole_digits_max=WHOLE_DIGITS_MAX)
    if micros is None:
        raise BadOrder(field, _("Write an amount such as 1234.50, with at most six places."))
    return micros


def _line(number: int, row: Sequence[str]) -> Line:
    if len(row) != len(COLUMNS):
        raise BadOrder("csv", _("Line %(number)s: it has %(count)s columns, and 2 are wanted.") % {
            "number": number, "count": len(row)
        })  # fmt: skip
    label, amount = row[0].strip(), typed_micros(row[1].strip(), whole_digits_max=WHOLE_DIGITS_MAX)
    if amount is None:
        raise BadOrder("csv", _("Line %(number)s: “%(amount)s” is no amount such as 1234.50.") % {
            "number": number, "amount": row[1][:40]
        })  # fmt: skip
    if not label or len(label) > LABEL_MAX or "\x00" in label:
        raise BadOrder("csv", _("Line %(number)s: write a label of 1 to %(most)s characters.") % {
            "number": number, "most": LABEL_MAX
        })  # fmt: skip
    return label, amount


def _begin(label: str) -> datetime:
    found = PERIOD.fullmatch(label)
    try:
        assert found is not None
        year, month, day = (int(part or 1) for part in found.groups())
        return datetime(year, month, day, tzinfo=UTC)
    except (AssertionError, ValueError) as error:
        raise BadOrder("period", _("Write 2026-11, or 2026-11-26 where periods are days.")) from error
