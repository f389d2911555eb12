"""The shapes of invoices, their lines, their proof, and billing details."""

from typing import Any

from rest_framework import serializers

from billing.models import BillingDetails, Collection, Invoice, InvoiceSeries, PrepaidItem, Unit, UsageSpan
from billing.models.prepaid import OF_OUTCOMES
from marketplace.api.shapes import NamedRef


class SaveBillingDetails(serializers.Serializer[Any]):
    legal_name = serializers.CharField(max_length=200)
    address = serializers.CharField(max_length=400, help_text="lines of the address, without the country")
    country = serializers.RegexField("^[A-Z]{2}$", help_text="two letters (ISO 3166-1)")
    tax_id = serializers.CharField(max_length=32, required=False, allow_blank=True, default="")
    email = serializers.EmailField(required=False, allow_blank=True, default="", help_text="where invoices go")
    language = serializers.ChoiceField(choices=BillingDetails.Language.values, required=False, default="en")


class BillingDetailsAnswer(serializers.Serializer[Any]):
    legal_name = serializers.CharField()
    address = serializers.CharField()
    country = serializers.CharField(help_text="empty until details were given")
    tax_id = serializers.CharField(help_text="its form was checked, not whether it is in force")
    email = serializers.CharField(help_text="empty: owners and billing members")
    language = serializers.CharField()


class Party(serializers.Serializer[Any]):
    name = serializers.CharField()
    address = serializers.CharField()
    country = serializers.CharField()
    tax_id = serializers.CharField()


class Period(serializers.Serializer[Any]):
    start = serializers.DateTimeField()
    end = serializers.DateTimeField(help_text="the first moment after it")


class TaxLine(serializers.Serializer[Any]):
    treatment = serializers.ChoiceField(choices=Invoice.Treatment.choices)
    country = serializers.CharField()
    name = serializers.CharField()
    rate_bps = serializers.IntegerField(help_text="hundredths of a percent")
    taxable = serializers.CharField()
    tax = serializers.CharField()


class InvoiceRef(serializers.Serializer[Any]):
    id = serializers.CharField()
    number = serializers.CharField()


class InvoiceAnswer(serializers.Serializer[Any]):
    """Money is decimal strings. A credit note's amounts are positive: they are what is given back."""

    id = serializers.CharField()
    number = serializers.CharField()
    kind = serializers.ChoiceField(choices=InvoiceSeries.Kind.choices)
    organization = NamedRef()
    credits = InvoiceRef(allow_null=True, help_text="of a credit note: the invoice that it takes back")
    reason = serializers.CharField()
    period = Period()
    issued_at = serializers.DateTimeField()
    currency = serializers.CharField()
    seller = Party()
    customer = Party()
    subtotal = serializers.CharField(help_text="the sum of the lines")
    promo = serializers.CharField(help_text="promotional credit, taken off before the tax")
    net = serializers.CharField()
    taxes = TaxLine(many=True)
    total = serializers.CharField()
    paid_at_issue = serializers.CharField(help_text="was paid from the balance already")
    due_at_issue = serializers.CharField()
    due = serializers.CharField(
        help_text="what is still to be paid of it; of one that is uncollectible, written off less recovered"
    )
    state = serializers.ChoiceField(
        choices=Collection.State.values, help_text="as payments say now; uncollectible: given up, and payable after all"
    )
    due_at = serializers.DateTimeField(allow_null=True, help_text="when it has to be paid; null where nothing was due")
    written_off = serializers.CharField(
        help_text="what was given up of it and is owed no more: the balance leaves it out"
    )
    recovered = serializers.CharField(help_text="what was paid of that after all, and no bank has taken back")


class InvoiceLineAnswer(serializers.Serializer[Any]):
    id = serializers.CharField(help_text="unique within the invoice")
    resource = serializers.CharField()
    name = serializers.CharField()
    project = serializers.CharField()
    meter = serializers.ChoiceField(choices=UsageSpan.Meter.values, allow_blank=True)
    market = serializers.CharField()
    late = serializers.BooleanField(help_text="use of an earlier period that became known afterwards")
    unit = serializers.ChoiceField(choices=Unit.values, allow_blank=True)
    unit_milliseconds = serializers.IntegerField()
    price_version = serializers.CharField(allow_null=True)
    price_per_unit_hour = serializers.CharField(allow_null=True, help_text="null where the price floats")
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    exact = serializers.CharField(help_text="what it cost to a millionth")
    amount = serializers.CharField(help_text="that, rounded with the invoice's other lines")


class ProofStep(serializers.Serializer[Any]):
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    milliseconds = serializers.IntegerField()
    price_per_unit_hour = serializers.CharField()


class ProofSpan(serializers.Serializer[Any]):
    span = serializers.CharField()
    quantity = serializers.IntegerField()
    span_starts_at = serializers.DateTimeField()
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    unit_milliseconds = serializers.IntegerField()
    price_version = serializers.CharField()
    steps = ProofStep(many=True)
    steps_left_out = serializers.IntegerField()
    cost_through_end = serializers.CharField(help_text="of the span from its very start, rounded once")
    cost_invoiced_before = serializers.CharField()
    amount = serializers.CharField(help_text="the difference of the two")


class ProofTier(serializers.Serializer[Any]):
    from_unit_hours = serializers.IntegerField()
    up_to_unit_hours = serializers.IntegerField(allow_null=True)
    unit_milliseconds = serializers.IntegerField()
    price_per_unit_hour = serializers.CharField()


class ProofAdjustment(serializers.Serializer[Any]):
    """amount = rated - charged - invoiced before; rated = listed + committed + minimum, or what a term left over."""

    unit_milliseconds = serializers.IntegerField(help_text="the month's use of this price")
    covered_unit_milliseconds = serializers.IntegerField(help_text="of it, drawn from a commitment")
    commitment = serializers.CharField(allow_null=True)
    tiers = ProofTier(many=True, help_text="of the use that no commitment covers")
    listed = serializers.CharField()
    committed = serializers.CharField()
    minimum = serializers.CharField(help_text="what was missing to the month's minimum")
    rated = serializers.CharField()
    charged = serializers.CharField(help_text="what the lines of the use ask")
    invoiced_before = serializers.CharField()
    amount = serializers.CharField()


class ProofHours(serializers.Serializer[Any]):
    gpus = serializers.IntegerField()
    hours = serializers.IntegerField()
    price_per_gpu_hour = serializers.CharField()


class ProofPrepaid(serializers.Serializer[Any]):
    """amount = the sum of GPUs x hours x price; of what was given back, kept less that sum."""

    kind = serializers.ChoiceField(choices=[kind for kind in PrepaidItem.Kind.values if kind not in OF_OUTCOMES])
    reservation = serializers.CharField(help_text="or what the payment was for, before hours were kept")
    at = serializers.DateTimeField(help_text="when it was paid, or given back")
    hours = ProofHours(many=True, help_text="none before they were kept")
    hours_cost = serializers.CharField()
    kept = serializers.CharField(help_text="of what the hours had cost, what was not given back")
    promo = serializers.CharField(help_text="of the amount, promotional credit")
    amount = serializers.CharField()


class ProofResult(serializers.Serializer[Any]):
    """Results that cost the same. amount = quantity x price x part / (per x 10,000), rounded once, less over_cap."""

    count = serializers.IntegerField()
    quantity = serializers.IntegerField()
    unit = serializers.CharField()
    price = serializers.CharField(help_text="for `per` units")
    per = serializers.IntegerField()
    part_bps = serializers.IntegerField(help_text="of the price, in hundredths of a percent")
    over_cap = serializers.CharField(help_text="what the cap of its period left out")
    amount = serializers.CharField(help_text="of each; below zero where it was given back")


class ProofOutcomes(serializers.Serializer[Any]):
    """amount = the sum of count x amount."""

    kind = serializers.ChoiceField(choices=OF_OUTCOMES)
    results = serializers.IntegerField()
    steps = ProofResult(many=True)
    steps_left_out = serializers.IntegerField()
    amount = serializers.CharField()


class ProofLine(serializers.Serializer[Any]):
    line = serializers.CharField()
    exact = serializers.CharField(help_text="worked out anew")
    amount = serializers.CharField(help_text="worked out anew")
    on_invoice = serializers.CharField()
    agrees = serializers.BooleanField()
    spans = ProofSpan(many=True)
    adjustment = ProofAdjustment(allow_null=True, help_text="of a line of tiers, a minimum or a commitment")
    prepaid = ProofPrepaid(allow_null=True, help_text="of a line of what was paid ahead, or given back of it")
    outcomes = ProofOutcomes(allow_null=True, help_text="of a line of results, or what was given back of them")


class ProofTotals(serializers.Serializer[Any]):
    agrees = serializers.BooleanField()
    on_invoice = serializers.DictField(child=serializers.CharField())
    worked_out = serializers.DictField(child=serializers.CharField())


class ProofAnswer(serializers.Serializer[Any]):
    """A page of lines worked out a second time, from spans and prices alone."""

    invoice = InvoiceRef()
    rule = serializers.CharField()
    totals = ProofTotals()
    data = ProofLine(many=True)  # type: ignore[assignment]
    next_cursor = serializers.CharField(allow_null=True)
