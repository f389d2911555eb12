"""The arithmetic of invoices over anything that can come: rounding, tax, what goes back with a credit note."""

from datetime import date
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.errors import BadTaxId
from billing.invoicing import tax_ids, taxes
from billing.invoicing.rounding import half_up, minor_unit_micros, part_of_tax, shared_out
from billing.invoicing.taxes import COUNTRIES, EU, TABLE, Party, Treatment

CENT, YEN = minor_unit_micros("USD"), minor_unit_micros("JPY")
TODAY = date(2026, 11, 26)
units = st.sampled_from([CENT, YEN])
lines = st.dictionaries(st.text(max_size=8), st.integers(-(10**13), 10**13), max_size=30)
countries = st.sampled_from([*TABLE["rates"], "US", "IN", "BR"])
parties = st.builds(Party, countries, st.sampled_from(["", "X123"]))


def test_a_country_with_a_rate_is_one_that_can_be_typed():
    assert {*TABLE["rates"], *EU, "US"} <= COUNTRIES
    assert len(COUNTRIES) == 249
    assert not {"UK", "EL"} & COUNTRIES


def test_the_smallest_amounts_are_a_cent_and_a_yen():
    assert (CENT, YEN) == (10_000, 1_000_000)


@given(lines, units)
def test_lines_are_whole_units_that_add_up_to_the_rounded_sum(exact, unit):
    amounts = shared_out(exact, unit)
    assert all(amount % unit == 0 for amount in amounts.values())
    assert sum(amounts.values()) == half_up(sum(exact.values()), unit)
    assert all(abs(amounts[key] - exact[key]) < unit for key in exact)


@given(lines, units, st.randoms())
def test_the_order_of_lines_does_not_matter(exact, unit, random):
    shuffled = list(exact.items())
    random.shuffle(shuffled)
    assert shared_out(dict(shuffled), unit) == shared_out(exact, unit)


@given(st.integers(-(10**15), 10**15), units)
def test_half_a_unit_is_rounded_away_from_zero(micros, unit):
    rounded = half_up(micros, unit)
    assert rounded % unit == 0
    assert 2 * abs(rounded - micros) <= unit
    assert half_up(-micros, unit) == -rounded
    if 2 * abs(rounded - micros) == unit:
        assert abs(rounded) > abs(micros)


@st.composite
def credited_in_steps(draw):
    """A net amount, its tax, and steps that take all of it back."""
    unit = draw(units)
    net = draw(st.integers(1, 10**6)) * unit
    tax = taxes.Tax(Treatment.DOMESTIC, "NO", "MVA", draw(st.integers(0, 3000))).micros(net, unit)
    cuts = sorted(draw(st.sets(st.integers(1, max(1, net // unit - 1)), max_size=6)))
    marks = [0, *(cut * unit for cut in cuts if cut * unit < net), net]
    return unit, net, tax, [b - a for a, b in pairwise(marks)]


@given(credited_in_steps())
def test_a_full_credit_in_any_number_of_steps_returns_exactly_the_tax(case):
    unit, net, tax, steps = case
    credited = returned = 0
    for step in steps:
        part = part_of_tax(
            tax_micros=tax, net_micros=net, credited_micros=credited, now_micros=step, unit=unit
        )  # fmt: skip
        assert part >= 0
        assert part % unit == 0
        credited, returned = credited + step, returned + part
    assert (credited, returned) == (net, tax)


@given(parties, parties, st.integers(0, 10**15), units)
def test_a_tax_is_its_rate_of_the_net_amount_rounded_half_up_once(seller, customer, net, unit):
    tax = taxes.decide(seller=seller, customer=customer, on=TODAY)
    exact = Fraction(net * tax.rate_bps, 10_000)
    assert tax.micros(net, unit) % unit == 0
    assert 2 * abs(tax.micros(net, unit) - exact) <= unit


@given(parties, parties)
def test_only_taxed_treatments_have_a_rate_and_every_country_is_decided(seller, customer):
    tax = taxes.decide(seller=seller, customer=customer, on=TODAY)
    assert (tax.rate_bps > 0) == (tax.treatment in {Treatment.DOMESTIC, Treatment.DESTINATION})
    if seller.country == "US":
        assert tax.treatment == Treatment.OUTSIDE
    if tax.treatment == Treatment.REVERSE_CHARGE:
        assert customer.tax_id
        assert customer.country != seller.country
    if tax.treatment == Treatment.DESTINATION:
        assert {seller.country, customer.country} <= EU


@pytest.mark.parametrize(
    ("seller", "customer", "tax_id", "treatment", "bps"),
    [
        ("NO", "NO", "", "domestic", 2500),
        ("NO", "NO", "995525828MVA", "domestic", 2500),
        ("DE", "DE", "DE136695976", "domestic", 1900),
        ("DE", "FR", "FR40303265045", "reverse_charge", 0),
        ("DE", "FR", "", "destination", 2000),
        ("DE", "FI", "", "destination", 2550),
        ("DE", "GB", "GB980780684", "reverse_charge", 0),
        ("DE", "GB", "", "outside", 0),
        ("DE", "US", "", "outside", 0),
        ("NO", "DE", "DE136695976", "reverse_charge", 0),
        ("GB", "GB", "", "domestic", 2000),
        ("CH", "CH", "", "domestic", 810),
        ("JP", "JP", "", "domestic", 1000),
        ("JP", "NO", "995525828MVA", "reverse_charge", 0),
        ("US", "DE", "", "outside", 0),
        ("US", "US", "", "outside", 0),
    ],
)
def test_the_tax_follows_seller_customer_and_tax_id(seller, customer, tax_id, treatment, bps):
    tax = taxes.decide(seller=Party(seller), customer=Party(customer, tax_id), on=TODAY)
    assert (tax.treatment, tax.rate_bps) == (treatment, bps)


def test_a_rate_holds_from_its_day_on():
    assert taxes.rate_bps("SK", date(2024, 12, 31)) == 2000
    assert taxes.rate_bps("SK", date(2025, 1, 1)) == 2300
    assert taxes.rate_bps("SK", date(1990, 1, 1)) == 0


def test_every_rate_has_a_source_and_the_table_its_date():
    for country in TABLE["rates"]:
        assert TABLE["sources"]["EU" if country in EU else TABLE["taxes"][country]["source"]]
    assert set(TABLE["rates"]) >= EU
    assert TABLE["as_of"] <= TODAY


@pytest.mark.parametrize(
    ("country", "typed", "kept"),
    [
        ("DE", "de 136 695 976", "DE136695976"),
        ("DE", "136695976", "DE136695976"),
        ("GR", "094259216", "EL094259216"),
        ("GB", "980 7806 84", "GB980780684"),
        ("NO", "995 525 828", "995525828MVA"),
        ("NO", "NO 995 525 828 MVA", "995525828MVA"),
        ("CH", "CHE-107.787.577 MWST", "CHE107787577"),
        ("JP", "T5835678256246", "T5835678256246"),
        ("JP", "5-8356-7825-6246", "T5835678256246"),
        ("US", "91-1144442", "911144442"),
        ("IN", "27AAPFU0939F1ZV", "27AAPFU0939F1ZV"),
        ("DE", "  ", ""),
    ],
)
def test_a_tax_id_is_kept_in_one_form(country, typed, kept):
    assert tax_ids.checked(country=country, typed=typed) == kept


@pytest.mark.parametrize(
    ("country", "typed"),
    [
        ("DE", "DE136695977"), ("DE", "FR40303265045"), ("FR", "x"), ("GB", "GB123"), ("NO", "995525829"),
        ("CH", "CHE-107.787.578"), ("JP", "T1234567890123"), ("JP", "T123"), ("US", "1"), ("IN", "ä"), ("AT", "💶"),
    ],
)  # fmt: skip
def test_a_tax_id_of_the_wrong_form_is_refused(country, typed):
    with pytest.raises(BadTaxId):
        tax_ids.checked(country=country, typed=typed)


@given(countries, st.text(max_size=20))
def test_whatever_is_typed_is_refused_or_kept_and_then_kept_again(country, typed):
    try:
        kept = tax_ids.checked(country=country, typed=typed)
    except BadTaxId:
        return
    assert tax_ids.checked(country=country, typed=kept) == kept
