"""A year in the life on a frozen clock, 2028 with its leap day: every account ends where the sheet in this test says.

* Thames pays ahead by card, in dollars, from Britain: promotional credit, automatic top-ups, a card that is declined,
  a refund, a bank that takes a payment back, use that turns out to have ended before the month did.
* Fjord pays afterwards, in dollars, from Norway with a quarter of tax: a meter that runs all year over a change of
  prices to tiers, dunning, a declined card, a bank transfer, a service credit, a credit note.
* Hudson pays ahead, in yen, from Japan: proof by 3-D Secure, hours paid ahead, storage, a dispute that is won.
* North (H200) gets seven tenths, a tenth of that held back for 30 days; South (L40S) half a dollar for a GPU-hour, and
  six tenths of what is paid in yen.

Nobody sleeps: the sweeps come by at moments that are chosen here.
"""

import csv
import io
import json
import re
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from django.core.management import call_command

from billing import accounts
from billing.models import (
    Account,
    Collection,
    CreditGrant,
    Dispute,
    DunningEvent,
    Invoice,
    Payment,
    Payout,
    ReconciliationCase,
    Refund,
    SlaVerdict,
    UsageSpan,
)
from billing.payments import gateway, reconciliation
from billing.test_processor import connect
from billing.test_processor.client import InProcess
from marketplace import breakdown
from tests.scenarios.year import MICROS, Year, live

pytestmark = pytest.mark.django_db

# What every account has at the end, in units of its currency, and how that comes about: plain arithmetic over hours,
# prices, shares and fees. What is not named has nothing. Money came from below zero, and all of it adds up to nothing.
SHEET = """
currency,owner,account,balance,how
USD,Thames,cash,532.80,5000 + 300 + 3*1000 - 300 - 100 - (1992*2.50 - 200) - (276 + 96 + 504 + 48)*2.80
USD,Fjord,receivable,-2607.00,-(1000*0.90 + 1976*0.60)*1.25
USD,North,payable,0.002,(1992*2.50 + 24*2.50 + 924*2.80)*0.70 - 48*2.80*0.07 - 5329.63
USD,North,reserve,9.408,48*2.80*0.70*0.10
USD,South,payable,0,(8784*4 + 715*8)*0.50 - 514.80*0.50 - 20170.60
USD,,processor,-11118.97,-(8300 + 34994.20) + 300 + 100 + 5329.63 + 20170.60 + (257.20 + 1017.80) + 5000
USD,,bank,-8348.00,-3348 - 5000
USD,,tax,8292.80,(28123.20 + 715*8*0.90)*0.25 - 25
USD,,fees,17355.56,7627.20*0.30 + (8784*4 + 715*8)*(0.90 - 0.50) - (257.20 + 1017.80)
USD,,revenue,-3599.20,-(4*1976 + 2*1880)*0.30 - 100
USD,,promo_expense,-260.00,-200 - 150 + 90
USD,,sla_expense,-257.40,-715*8*0.90*0.10 + 514.80*0.50
JPY,Hudson,cash,372405,600000 - 48*375 - 2*720*135 - 1000*696*0.01 - 3375 - 3*12*135
JPY,North,payable,4095,48*375*0.70 - 8505
JPY,South,payable,4941.225,(2*720*135 + 3375.375 + 3*12*135)*0.60 - 116640
JPY,,processor,-455895,-600000 + 100000 - 100000 + (14530 + 2930 + 1500) + 8505 + 116640
JPY,,fees,67494.150,48*375*0.30 + (2*720*135 + 3375.375 + 3*12*135)*0.40 - (14530 + 2930 + 1500)
JPY,,revenue,6959.625,1000*696*0.01 - 0.375
"""
# Every invoice: what was used less promotional credit, the tax on it, and when it was issued.
INVOICES = """
number,day,customer,net,tax
INV-000001,2028-02-01,Thames,1120.00,0
INV-000002,2028-02-01,Fjord,2678.40,669.60
INV-000003,2028-03-01,Thames,1740.00,0
INV-000004,2028-03-01,Fjord,2505.60,626.40
INV-000005,2028-03-01,Hudson,20460,0
INV-000006,2028-04-01,Thames,1860.00,0
INV-000007,2028-04-01,Fjord,2678.40,669.60
INV-000008,2028-04-01,Hudson,198900,0
INV-000009,2028-05-01,Thames,60.00,0
INV-000010,2028-05-01,Fjord,2592.00,648.00
INV-000011,2028-06-01,Fjord,7826.40,1956.60
INV-000012,2028-07-01,Fjord,2592.00,648.00
INV-000013,2028-08-01,Fjord,2085.60,521.40
INV-000014,2028-09-01,Thames,806.40,0
INV-000015,2028-09-01,Fjord,2085.60,521.40
INV-000016,2028-10-01,Thames,268.80,0
INV-000017,2028-10-01,Fjord,2028.00,507.00
INV-000018,2028-11-01,Thames,806.40,0
INV-000019,2028-11-01,Fjord,2085.60,521.40
INV-000020,2028-11-01,Hudson,3375,0
INV-000021,2028-12-01,Thames,604.80,0
INV-000022,2028-12-01,Fjord,2028.00,507.00
INV-000023,2029-01-01,Thames,134.40,0
INV-000024,2029-01-01,Fjord,2085.60,521.40
INV-000025,2029-01-01,Hudson,4860,0
CN-000001,2028-10-01,Thames,33.60,0
CN-000002,2028-10-04,Fjord,100.00,25.00
"""
# North is paid what it earned until the end of a month less what is held back of that, from 50 dollars or 5000 yen on.
PAYOUTS = """
supplier,currency,day,amount
North,USD,2028-02-05,831.60
North,USD,2028-03-05,1139.77
North,JPY,2028-03-05,8505
North,USD,2028-04-05,1343.13
North,USD,2028-05-05,168.00
North,USD,2028-09-05,532.36
North,USD,2028-10-05,223.44
North,USD,2028-11-05,526.85
North,USD,2028-12-05,438.25
North,USD,2029-01-05,126.23
South,USD,2028-02-05,1488.00
South,USD,2028-03-05,1392.00
South,USD,2028-04-05,1488.00
South,USD,2028-05-05,1440.00
South,JPY,2028-05-05,116640
South,USD,2028-06-05,4300.60
South,USD,2028-07-05,1230.00
South,USD,2028-08-05,1488.00
South,USD,2028-09-05,1488.00
South,USD,2028-10-05,1440.00
South,USD,2028-11-05,1488.00
South,USD,2028-12-05,1440.00
South,USD,2029-01-05,1488.00
"""
# What Thames used by months of who reads it, in hours at 2.50 and 2.80: clocks change on 26 March and 29 October in
# London, on 12 March and 5 November in New York.
MONTHS = {
    "Europe/London": {
        1: "528*2.50", 2: "696*2.50", 3: "743*2.50", 4: "25*2.50", 5: "24*2.50", 8: "276*2.80", 9: "96*2.80",
        10: "288*2.80", 11: "216*2.80", 12: "48*2.80",
    },
    "America/New_York": {
        1: "533*2.50", 2: "696*2.50", 3: "743*2.50", 4: "20*2.50", 5: "24*2.50", 8: "276*2.80", 9: "96*2.80",
        10: "292*2.80", 11: "212*2.80", 12: "48*2.80",
    },
}  # fmt: skip
CHANGES = {
    ("Europe/London", date(2028, 3, 26)): "23*2.50",
    ("Europe/London", date(2028, 2, 29)): "24*2.50",
    ("Europe/London", date(2028, 10, 29)): "25*2.80",
    ("America/New_York", date(2028, 3, 12)): "23*2.50",
    ("America/New_York", date(2028, 11, 5)): "25*2.80",
}


def rows(sheet):
    return list(csv.DictReader(io.StringIO(sheet.strip())))


def worked_out(how):
    return eval(re.sub(r"[0-9.]+", lambda number: f"Decimal('{number[0]}')", how), {"Decimal": Decimal})


def units(micros):
    return Decimal(micros) / MICROS


@pytest.fixture
def year(db, settings, monkeypatch):
    """The year before it begins; whoever asks for the time gets the frozen one."""
    settings.STRIPE_API_KEY, settings.STRIPE_WEBHOOK_SECRET, settings.STRIPE_API_BASE = "sk_test_ours", "whsec_ours", ""
    played = Year()
    monkeypatch.setattr(gateway, "transport", lambda: InProcess(played.world))
    monkeypatch.setattr("django.utils.timezone.now", lambda: played.at)
    gateway._client_of.cache_clear()
    played.found()
    played.sell()
    yield played
    gateway._client_of.cache_clear()


@pytest.fixture
def lived(year):
    live(year)
    return year


def balances(year):
    found = {}
    for account in Account.objects.all():
        balance = units(accounts.balance_micros(account))
        if balance:
            found[account.currency, year.names.get(account.organization_id, ""), account.kind] = balance
    return found


def test_the_sheet_itself_adds_up():
    total = defaultdict(Decimal)
    for row in rows(SHEET):
        assert worked_out(row["how"]) == Decimal(row["balance"]), row
        total[row["currency"]] += Decimal(row["balance"])
    assert total == {"USD": 0, "JPY": 0}


def test_after_a_year_every_account_is_where_the_sheet_says(lived):
    expected = {
        (row["currency"], row["owner"], row["account"]): Decimal(row["balance"])
        for row in rows(SHEET)
        if Decimal(row["balance"])
    }
    assert invoices(lived) == [tuple(row.values()) for row in rows(INVOICES)]
    assert paid_out(lived) == sorted(tuple(row.values()) for row in rows(PAYOUTS))
    assert balances(lived) == expected
    check_what_happened(lived)
    check_costs_by_day(lived)
    check_processor(lived)
    check_books()


def amount(micros):
    """Write an amount as the sheets do."""
    whole, rest = divmod(micros, MICROS)
    return f"{units(micros):.2f}" if rest or whole else "0"


def invoices(year):
    found = []
    for one in Invoice.objects.order_by("kind", "sequence"):
        said = (lambda micros: str(micros // MICROS)) if one.currency == "JPY" else amount
        day, customer = f"{one.issued_at:%Y-%m-%d}", year.names[one.organization_id]
        found.append((one.number, day, customer, said(one.net_micros), said(one.tax_micros)))
    return sorted(found, key=lambda row: (row[0].startswith("CN"), row[0]))


def paid_out(year):
    found = []
    for one in Payout.objects.all():
        assert one.state == Payout.State.PAID
        said = str(one.amount_micros // MICROS) if one.currency == "JPY" else amount(one.amount_micros)
        found.append((year.names[one.supplier_id], one.currency, f"{one.finished_at:%Y-%m-%d}", said))
    return sorted(found)


def check_what_happened(year):
    """The detours were taken: each declined charge, dispute, refund, reminder and piece of credit."""
    states = sorted(Payment.objects.filter(organization=year.fjord.pk).values_list("state", flat=True))
    assert states == ["failed"] * 2 + ["succeeded"] * 10
    assert sorted(Dispute.objects.values_list("state", flat=True)) == ["lost", "won"]
    assert Refund.objects.get().state == Refund.State.SUCCEEDED
    unpaid = Collection.objects.exclude(state=Collection.State.PAID)
    assert [one.invoice.number for one in unpaid] == ["INV-000024"]
    late = DunningEvent.objects.filter(invoice__number="INV-000012").order_by("pk")
    assert [one.step.day_offset for one in late] == [-7, -3, 0, 1, 3]
    assert units(SlaVerdict.objects.get().credit_micros) == Decimal("514.80")
    grants = CreditGrant.objects.filter(account__organization=year.thames.pk).order_by("pk")
    assert [units(one.expired_micros) for one in grants] == [0, 90]
    assert not UsageSpan.objects.filter(ended_at=None).exists()


def check_costs_by_day(year):
    """However somebody's days and months are cut, they add up to the same year."""
    for zone, expected in MONTHS.items():
        edges = breakdown.days(datetime(2028, 1, 1, tzinfo=ZoneInfo(zone)), datetime(2029, 1, 1, tzinfo=ZoneInfo(zone)))
        assert len(edges) == 367
        by_day, by_month = defaultdict(int), defaultdict(int)
        for cost in breakdown.of(year.thames, edges, at=year.at):
            by_day[cost.day.date()] += cost.micros
            by_month[cost.day.month] += cost.micros
        assert {number: units(micros) for number, micros in by_month.items()} == {
            number: worked_out(how) for number, how in expected.items()
        }
        assert units(sum(by_day.values())) == Decimal("7627.20")
        for (where, day), how in CHANGES.items():
            if where == zone:
                assert units(by_day[day]) == worked_out(how), (zone, day)


def check_processor(year):
    """The processor has what our ledger says, down to the last cent, and nothing is left to explain."""
    assert not ReconciliationCase.objects.filter(closed_at=None).exists()
    assert [(one.difference_micros, one.unexplained_micros) for one in reconciliation.comparisons(at=year.at)] == [
        (0, 0), (0, 0),
    ]  # fmt: skip
    assert connect.balance(year.world, "usd") == 1_111_897
    assert connect.balance(year.world, "jpy") == 455_895


def check_books():
    said = io.StringIO()
    call_command("check_books", "--recompute", "--json", stdout=said)
    assert json.loads(said.getvalue())["findings"] == []


def test_every_day_is_one_of_the_reader():
    """Clocks change on these days: without that the hours above would mean nothing."""
    for zone, day in CHANGES:
        here = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))
        after = here + timedelta(days=1)  # of the wall clock
        hours = (after.astimezone(UTC) - here.astimezone(UTC)) // timedelta(hours=1)
        assert str(hours) == CHANGES[zone, day].partition("*")[0]
