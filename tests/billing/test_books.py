"""The audit finds every kind of broken book; each is broken here on purpose."""

import json
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import connection

from billing import books, charging, floating, usage
from tests.billing.makers import HOUR, NOON, USD, account, hold_money, make_price, start

pytestmark = pytest.mark.django_db

# PostgreSQL would refuse most of this: each guard is put aside first, in a transaction that the test rolls back.
SUSPENDED = """
    SET CONSTRAINTS ALL IMMEDIATE;
    ALTER TABLE billing_transfer DISABLE TRIGGER USER;
    ALTER TABLE billing_charge DISABLE TRIGGER USER;
    ALTER TABLE billing_pricepoint DISABLE TRIGGER USER;
    ALTER TABLE billing_usagespan DROP CONSTRAINT usage_span_no_overlap;
    ALTER TABLE billing_usagespan DROP CONSTRAINT usage_span_not_charged_beyond_its_end;
"""


@pytest.fixture
def busy(acme):
    """One resource that ran, was charged and stopped, one that runs, one at a floating price, a hold that waits."""
    price = make_price()
    hold_money(acme, USD, resource_id="ins_1", key="first-hour:ins_1:1")
    start(acme, resource_id="ins_1", price_version=price)
    usage.stop(resource_id="ins_1", at=NOON + HOUR)
    span = start(acme, resource_id="ins_2", at=NOON, price_version=price)
    charging.charge_span(span=span, through=NOON + HOUR / 2)
    hold_money(acme, USD, resource_id="ins_3", key="first-hour:ins_3:1")
    series = floating.open_series(sku="ofr_1/spot", currency="USD", micros_per_unit_hour=9, by="x", at=NOON)
    span = start(acme, resource_id="ins_4", price_version=series)
    floating.append(series=series, micros_per_unit_hour=99, at=NOON + HOUR / 4)
    charging.charge_span(span=span, through=NOON + HOUR / 2)
    assert broken_rules() == set()
    return acme


def broken_rules():
    return {finding.rule for finding in books.check(at=NOON + HOUR)}


def run_sql(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)


BREAKS = {
    "balance_is_the_sum_of_transfers": "UPDATE billing_account SET balance_micros = 5000001 WHERE kind = 'cash'",
    "held_is_the_sum_of_open_holds": "UPDATE billing_account SET held_micros = held_micros + 1 WHERE kind = 'cash'",
    "posted_is_the_sum_of_posts": "UPDATE billing_hold SET amount_micros = 9000000, state = 'voided', posted_micros = "
    "posted_micros + 1 WHERE resource_id = 'ins_1'",
    "charge_has_its_transfers": "UPDATE billing_charge SET promo_micros = promo_micros - 1, "
    "cash_micros = cash_micros + 1",
    "transfer_has_its_charge": "UPDATE billing_transfer SET key = 'charge:spn_unknown:1:cash' WHERE reason = 'Test'",
    "span_is_the_sum_of_its_charges": "UPDATE billing_usagespan SET charged_micros = charged_micros + 1",
    "span_costs_what_it_measured": "UPDATE billing_usagespan SET quantity = quantity + 1",
    "span_at_a_floating_price_costs_what_its_points_say": "UPDATE billing_usagespan SET quantity = quantity + 1",
    "floating_price_sums_up_its_points": "UPDATE billing_pricepoint SET sum_micro_ms = 1 WHERE sum_micro_ms > 0",
    "floating_price_has_points_from_its_start": "DELETE FROM billing_pricepoint WHERE sum_micro_ms = 0",
    "span_price_was_in_force": "UPDATE billing_usagespan SET started_at = '2026-03-02 10:59:59+00'",
    "span_price_is_for_its_unit": "UPDATE billing_usagespan SET meter = 'volume' WHERE resource_id = 'ins_2'",
    "spans_do_not_overlap": "UPDATE billing_usagespan SET resource_id = 'ins_1' WHERE resource_id = 'ins_2'",
    "ended_span_is_charged_to_its_end": "UPDATE billing_usagespan SET ended_at = ended_at + interval '1 ms'",
    "nothing_is_charged_ahead": "UPDATE billing_usagespan SET charged_through = '2999-01-01'",
    "no_more_is_earned_than_was_paid_ahead": "UPDATE billing_account SET kind = 'deferred' WHERE kind = 'processor'",
    "runway_burns_what_is_open": "DELETE FROM billing_runway",
}


@pytest.mark.parametrize("rule", books.RULES)
def test_the_audit_finds(busy, rule):
    run_sql(SUSPENDED)
    run_sql(BREAKS[rule])
    assert rule in broken_rules()


def test_a_finding_names_the_row_and_both_numbers(busy):
    run_sql(BREAKS["balance_is_the_sum_of_transfers"])
    (finding,) = books.check(at=NOON)
    assert finding.subject == account(busy, "cash").public_id
    assert finding.detail == f"balance {5 * USD + 1}, transfers {5 * USD}"


@pytest.mark.parametrize("micros", [1, 3, 7, 2_499_999, 10**13 - 1])
@pytest.mark.parametrize("ms", [1, 899_999, 900_000, 1_800_000, 10_800_001])
def test_sql_and_python_agree_on_every_charge(acme, micros, ms):
    start(acme, quantity=3, price_version=make_price(micros_per_unit_hour=micros))
    usage.stop(resource_id="ins_1", at=NOON + timedelta(milliseconds=ms))
    assert broken_rules() == set()


def test_the_command_prints_one_line_and_ends_well_when_the_books_balance(busy, capsys):
    call_command("check_books")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("The books balance: ")
    assert "3 usage spans" in lines[0]


def test_the_command_names_each_finding_and_ends_with_one(busy, capsys):
    run_sql(BREAKS["held_is_the_sum_of_open_holds"])
    with pytest.raises(SystemExit) as end:
        call_command("check_books")
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 1
    assert lines[0].startswith(f"held_is_the_sum_of_open_holds: {account(busy, 'cash').public_id}: ")
    assert lines[-1].startswith("1 findings: ")


def test_the_command_speaks_json(busy, capsys):
    call_command("check_books", "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["balanced"], report["findings"], report["counts"]["usage spans"]) == (True, [], 3)
    run_sql("DELETE FROM billing_runway")
    with pytest.raises(SystemExit):
        call_command("check_books", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["balanced"] is False
    assert report["findings"][0]["rule"] == "runway_burns_what_is_open"
