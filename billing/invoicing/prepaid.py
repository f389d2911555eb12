"""What was paid ahead, and what was given back of it, as lines of an invoice.

It is invoiced when it is paid: that is when its tax is due. What moves it to
revenue later, as it is delivered, is between the platform's own accounts.
"""

from collections.abc import Collection, Mapping, Sequence

from billing.models import Invoice, InvoiceLine, InvoicePrepaid, PrepaidItem

BULK = 2000
# Documents keep the words of their day, in their own language: see `marketplace.invoices.words`.
WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "reservation": "Reservation {resource}",
        "extension": "Extension of {resource}",
        "trade": "Reserved hours bought: {resource}",
        "cancelled": "Given back for the cancellation of {resource}",
        "shortfall": "Given back for hours not delivered of {resource}",
        "resold": "Given back for hours resold of {resource}",
        "outcome": "{name}: {quantity:,} {unit}, accepted results: {count:,}, {resource}",
        "share": "{name}: share of revenue, {subject}",
        "true_up": "{name}: up to the minimum, {subject}",
        "true_up_metered_cost": "{name}: up to what its use costs by the list, {subject}",
        "true_up_correction": "{name}: what the estimate was too low by, {subject}",
        "reversed": "Given back for {name}, results: {count:,}, {resource}",
        "hours": "{what}: {hours:,} GPU-hours, {begin} – {end} UTC, {name}",
        "unknown": "{what}: {name}",
    },
    "ja": {
        "reservation": "予約 {resource}",
        "extension": "予約の延長 {resource}",
        "trade": "予約時間の購入 {resource}",
        "cancelled": "予約の取消しによる返金 {resource}",
        "shortfall": "提供できなかった時間の返金 {resource}",
        "resold": "予約時間の再販による返金 {resource}",
        "outcome": "{name}：{quantity:,} {unit}、検収済みの成果 {count:,} 件、{resource}",
        "share": "{name}：収益分配、{subject}",
        "true_up": "{name}：最低額との差額、{subject}",
        "true_up_metered_cost": "{name}：ご利用の定価との差額、{subject}",
        "true_up_correction": "{name}：見積額の不足分、{subject}",
        "reversed": "{name} の返金、成果 {count:,} 件、{resource}",
        "hours": "{what}：{hours:,} GPU時間、{begin}～{end}（UTC）、{name}",
        "unknown": "{what}：{name}",
    },
}


def uninvoiced(organization_ids: Collection[int]) -> dict[int, list[PrepaidItem]]:
    """Return what of each organization is on no invoice, that of the running month included. One query."""
    found: dict[int, list[PrepaidItem]] = {key: [] for key in organization_ids}
    rows = PrepaidItem.objects.filter(organization__in=found, invoiced=None).select_related("outcome")
    for item in rows.order_by("at", "pk"):
        found[item.organization_id].append(item)
    return found


def line_key(item: PrepaidItem) -> str:
    """Return which line an item belongs to: its own, or that of all results of a resource at one price."""
    one = item.outcome
    if one is None:
        return item.key
    return f"outcome:{one.resource_id}:{one.version}:{one.kind}:{one.micros_per_unit}:{one.per}"


def line(items: Sequence[PrepaidItem], invoice: Invoice, *, key: str, is_late: bool, amount_micros: int) -> InvoiceLine:
    """Return items of one line as that. It measured nothing, so its hours stand in its text and its proof."""
    item = items[0]
    prices = {micros for _, _, micros in item.hours}
    return InvoiceLine(
        invoice=invoice,
        key=key,
        resource_id=item.resource_id,
        resource_name=text(items, invoice.language)[:200],
        project=item.project,
        market="outcome" if item.outcome_id else "reserved",
        is_late=is_late,
        micros_per_unit_hour=prices.pop() if len(prices) == 1 else None,
        starts_at=min(one.starts_at for one in items),
        ends_at=max(one.ends_at for one in items),
        unit_milliseconds=0,
        exact_micros=sum(one.amount_micros for one in items),
        amount_micros=amount_micros,
    )


def write(lines: Sequence[tuple[PrepaidItem, InvoiceLine]]) -> None:
    """Write down that these items are on their lines, which happens once to each."""
    rows = [InvoicePrepaid(line=line, item=item) for item, line in lines]
    InvoicePrepaid.objects.bulk_create(rows, batch_size=BULK)


def text(items: Sequence[PrepaidItem], language: str) -> str:
    """Return what an invoice in a language says of the items of one line."""
    said, item = WORDS.get(language, WORDS["en"]), items[0]
    if item.outcome is not None:
        quantity = sum(one.outcome.quantity for one in items if one.outcome)
        return said.get(f"{item.kind}_{item.outcome.unit}", said[item.kind]).format(
            name=item.name, quantity=quantity, unit=item.outcome.unit, count=len(items), resource=item.resource_id,
            subject=item.outcome.subject,
        )  # fmt: skip
    what = said[item.kind].format(resource=item.resource_id)
    if not item.hours:
        return said["unknown"].format(what=what, name=item.name)
    hours = sum(gpus * number for gpus, number, _ in item.hours)
    begin, end = (f"{edge:%Y-%m-%d %H:%M}" for edge in (item.starts_at, item.ends_at))
    return said["hours"].format(what=what, hours=hours, begin=begin, end=end, name=item.name)
