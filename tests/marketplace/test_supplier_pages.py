"""From the application to the payout: what a supplier and two capacity managers see and do."""

from datetime import UTC, datetime, timedelta
from io import BytesIO
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from pypdf import PdfReader

from billing import books, charging
from billing.invoicing import sellers
from billing.models import PayoutAccount, RateCard, SupplierAdjustment, SupplierStatement
from billing.payments import gateway
from billing.suppliers import accruing, purses, statements
from billing.test_processor import connect
from billing.test_processor.client import InProcess
from marketplace.models import AuditEntry, Organization, Role, SupplierApplication
from marketplace.portal.preferences import ZONE_COOKIE
from tests.billing.payments.stage import Processor
from tests.conftest import make_member, make_organization, make_person, make_token
from tests.marketplace.portal.reading import read
from tests.standing import frozen

pytestmark = pytest.mark.django_db
MAY = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def browser(user):
    client = Client()
    client.force_login(user)
    return client


def text(answer, status=200):
    assert answer.status_code == status
    return answer.content.decode()


def asked(token, path):
    return Client().get(f"/api/v1/{path}", headers={"Authorization": f"Bearer {token}"})


clock = frozen(MAY)


@pytest.fixture
def carol_desk(carol):
    return browser(carol)


@pytest.fixture
def dan_desk(db):
    return browser(make_person("dan@operator.example", is_staff=True))


@pytest.fixture
def owner(operator):
    """Owns the supplier of the fleet."""
    return operator.memberships.get().user


def on_paper(organization):
    sellers.save_details(
        organization=organization, legal_name="Nordlys Compute AS", address="Narvik", country="NO",
        tax_id="995525828MVA",
    )  # fmt: skip


def agree(carol_desk, dan_desk, supplier, **fields):
    """Propose and approve a rate card of seven tenths, a tenth of that held back."""
    wanted = {
        "offer": "", "share_bps": "70", "fixed_micros": "", "fixed_currency": "USD", "reserve_bps": "10",
        "reserve_days": "30", "sla_bps": "50", "effective_from": "", "key": str(uuid4()),
    } | fields  # fmt: skip
    assert carol_desk.post(reverse("console-rate-card", args=[supplier.public_id]), wanted).status_code == 302
    card = RateCard.objects.latest("pk")
    path = reverse("console-rate-card-approve", args=[card.public_id])
    assert carol_desk.post(path).status_code == 422
    assert dan_desk.post(path).status_code == 302
    card.refresh_from_db()
    return card


@pytest.fixture
def earned(clock, operator, carol_desk, dan_desk, rent, run_until_idle):
    """The fleet's supplier earned by ten hours of one H200, and has the statement of May."""
    Organization.objects.filter(pk=operator.pk).update(is_supplier=True)
    operator.is_supplier = True
    on_paper(operator)
    sellers.name_seller(organization=operator)
    agree(carol_desk, dan_desk, operator)
    rent()
    run_until_idle()
    clock.shift(10 * HOUR)
    charging.charge_due(at=MAY + 10 * HOUR)
    accruing.accrue(at=MAY + 10 * HOUR)
    return operator


@pytest.fixture
def stated(clock, earned):
    clock.move_to(datetime(2026, 6, 1, 4, 0, tzinfo=UTC))
    statements.issue_due(at=datetime(2026, 6, 1, 4, 0, tzinfo=UTC))
    return SupplierStatement.objects.get()


def test_an_organization_applies_and_is_let_in(alice, acme, carol_desk):
    page, path = browser(alice), reverse("supplier")
    assert "Say first who you are on paper" in text(page.get(path))
    on_paper(acme)
    assert "Write about how many GPUs" in text(page.post(path, {"gpus": "many", "about": "H200"}), 422)
    assert "Write in at most 1,000 letters" in text(page.post(path, {"gpus": "64", "about": "H\x00200"}), 422)
    assert page.post(path, {"gpus": "64", "about": "Eight H200 nodes in Narvik"}).status_code == 302
    assert "waits for an answer" in text(page.get(path))
    assert "Eight H200 nodes" in text(carol_desk.get(reverse("console-suppliers")))
    made = SupplierApplication.objects.get()
    assert carol_desk.post(reverse("console-supplier-approve", args=[made.public_id])).status_code == 302
    assert Organization.objects.get(pk=acme.pk).is_supplier
    assert "To be paid out" in text(page.get(path))
    assert {"supplier.apply", "supplier.approve"} <= set(AuditEntry.objects.values_list("verb", flat=True))


def test_nobody_lets_their_own_organization_in(alice, acme):
    on_paper(acme)
    type(alice).objects.filter(pk=alice.pk).update(is_staff=True)
    page = browser(alice)
    page.post(reverse("supplier"), {"gpus": "64", "about": "Eight H200 nodes in Narvik"})
    made = SupplierApplication.objects.get()
    answer = page.post(reverse("console-supplier-approve", args=[made.public_id]))
    assert (answer.status_code, "somebody else has to decide" in answer.content.decode()) == (422, True)
    made.refresh_from_db()
    assert (made.state, Organization.objects.get(pk=acme.pk).is_supplier) == ("open", False)


def test_a_declined_application_says_why_and_may_be_repeated(alice, acme, carol_desk):
    on_paper(acme)
    page, path = browser(alice), reverse("supplier")
    page.post(path, {"gpus": "2", "about": "Two old GPUs"})
    made = SupplierApplication.objects.get()
    carol_desk.post(reverse("console-supplier-decline", args=[made.public_id]), {"reason": "too small"})
    assert "too small" in text(page.get(path))
    assert page.post(path, {"gpus": "64", "about": "More"}).status_code == 302


def test_a_viewer_may_not_look_and_a_stranger_finds_nothing(stated, charlie):
    viewer = make_member(stated.supplier, "vera@operator.example", Role.VIEWER)
    for name in ("supplier-statement", "supplier-statement-pdf", "supplier-statement-csv"):
        path = reverse(name, args=[stated.public_id])
        assert browser(viewer).get(path).status_code == 403
        assert browser(charlie).get(path).status_code == 404
    token = make_token(charlie, charlie.memberships.get().organization)
    for path in ("", "/lines", "/lines.csv", "/pdf"):
        assert asked(token, f"statements/{stated.public_id}{path}").status_code == 404


def test_the_overview_has_the_chart_and_the_same_figures_as_a_table(earned, owner):
    desk = browser(owner)
    desk.cookies[ZONE_COOKIE] = "America/Los_Angeles"  # its days are those of the books all the same
    page = text(desk.get(reverse("supplier")))
    assert "2026-05-04" in page
    assert "2026-05-03" not in page
    for figure in ("$24.90", "$15.69", "$1.74", "$7.47", "70\u00a0% of what customers pay"):
        assert figure in page
    assert page.count("<rect") > 3
    assert "h200-1" in text(browser(owner).get(reverse("supplier-nodes")))


def test_a_statement_is_shown_proved_and_downloaded(stated, owner):
    page = browser(owner)
    listed = text(page.get(reverse("supplier-statements")))
    assert "ST-000001" in listed
    assert "once its invoice is paid in full" in listed
    shown = text(page.get(reverse("supplier-statement", args=[stated.public_id])))
    for figure in ("$24.90", "$17.43", "× 70\u00a0% ="):
        assert figure in shown
    pdf = page.get(reverse("supplier-statement-pdf", args=[stated.public_id])).content
    told = "".join(sheet.extract_text() for sheet in PdfReader(BytesIO(pdf)).pages)
    for words in ("ST-000001", "Nordlys Compute AS", "995525828MVA", "10.000", "$24.90", "$17.43"):
        assert words in told
    rows = page.get(reverse("supplier-statement-csv", args=[stated.public_id])).content.decode().splitlines()
    assert rows[0].startswith("statement,line,offer")
    assert "24.900000,15.687000,1.743000,7.470000" in rows[1]


def test_a_statement_comes_in_japanese_too(clock, earned, owner):
    sellers.save_details(
        organization=earned, legal_name="Nordlys", address="Narvik", country="NO", language="ja"
    )  # fmt: skip
    statements.issue_due(at=datetime(2026, 6, 1, 4, 0, tzinfo=UTC))
    made = SupplierStatement.objects.get()
    pdf = browser(owner).get(reverse("supplier-statement-pdf", args=[made.public_id])).content
    assert "支払明細書" in "".join(sheet.extract_text() for sheet in PdfReader(BytesIO(pdf)).pages)


def test_the_api_gives_statements_with_their_arithmetic(stated, owner):
    token = make_token(owner, stated.supplier)
    (row,) = asked(token, "statements").json()["data"]
    assert (row["number"], row["charged"], row["closing"]) == ("ST-000001", "24.900000", "17.430000")
    assert asked(token, f"statements/{row['id']}").json() == row
    (line,) = asked(token, f"statements/{row['id']}/lines").json()["data"]
    assert line["items"][0]["share_bps"] == 7000
    assert asked(token, f"statements/{row['id']}/pdf").content.startswith(b"%PDF")
    assert asked(token, f"statements/{row['id']}/lines.csv").content.startswith(b"statement,")
    assert asked(token, "payouts").json()["data"] == []


def test_the_console_shows_a_supplier(stated, carol):
    carol_desk = browser(carol)  # her session of May is over
    page = text(carol_desk.get(reverse("console-supplier", args=[stated.supplier.public_id])))
    for words in ("ST-000001", "70\u00a0% of what customers pay", "bears 50\u00a0% of service credits"):
        assert words in page
    assert stated.supplier.name in text(carol_desk.get(reverse("console-suppliers")))


def test_an_adjustment_takes_two_people(earned, carol_desk, dan_desk):
    fields = {
        "direction": "take", "amount_micros": "5", "currency": "USD", "kind": "refund", "reason": "Slow network",
        "key": str(uuid4()),
    }  # fmt: skip
    path = reverse("console-supplier-adjust", args=[earned.public_id])
    for _ in range(2):
        assert carol_desk.post(path, fields).status_code == 302
    made = SupplierAdjustment.objects.get()
    assert AuditEntry.objects.filter(verb="supplier_adjustment.propose").count() == 1
    approve = reverse("console-adjustment-approve", args=[made.public_id])
    assert carol_desk.post(approve).status_code == 422
    before = purses.of(earned.pk)["USD"]
    assert dan_desk.post(approve).status_code == 302
    after = purses.of(earned.pk)["USD"]
    gone = before.payable.balance_micros + before.reserve.balance_micros - 5_000_000
    assert after.payable.balance_micros + after.reserve.balance_micros == gone
    assert books.check(at=MAY + 99 * HOUR) == []


def test_a_card_of_the_past_is_refused(earned, carol_desk):
    fields = {
        "share_bps": "70", "reserve_bps": "0", "reserve_days": "0", "sla_bps": "0", "fixed_currency": "USD",
        "effective_from": "2026-01-01T00:00", "key": str(uuid4()),
    }  # fmt: skip
    answer = carol_desk.post(reverse("console-rate-card", args=[earned.public_id]), fields)
    assert "never begins in the past" in text(answer, 422)


def test_payouts_can_be_held_back_and_let_go(earned, carol_desk, owner):
    account = PayoutAccount.objects.create(supplier=earned, processor_id="acct_1", country="NO", can_be_paid=True)
    path = reverse("console-payouts-hold", args=[earned.public_id])
    for is_held in (True, False):
        typed = {"reason": "Papers", "is_held": read(carol_desk.get(path)).value("is_held")}
        for _sent_twice in range(2):
            assert carol_desk.post(path, typed).status_code == 302
        account.refresh_from_db()
        assert (account.held_at is not None) == is_held
    assert AuditEntry.objects.filter(verb__startswith="payouts.").count() == 2
    assert "No payouts yet" in text(browser(owner).get(reverse("supplier-payouts")))


def test_who_comes_back_from_the_processor_is_looked_at_at_once(clock, operator, owner, settings, monkeypatch):
    settings.STRIPE_API_KEY = "sk_test_ours"
    processor = Processor()
    processor.at = MAY
    monkeypatch.setattr(gateway, "transport", lambda: InProcess(processor.world))
    Organization.objects.filter(pk=operator.pk).update(is_supplier=True)
    on_paper(operator)
    page = browser(owner)
    away = page.post(reverse("supplier-connect"))["Location"]
    assert not PayoutAccount.objects.get().can_be_paid
    back = connect.give_papers(processor.world, away.rpartition("/")[2])
    path = back[back.index(reverse("supplier-payouts")) :]
    processor.fails("rate_limit", path="/v1/accounts")
    text(page.get(path))
    assert not PayoutAccount.objects.get().can_be_paid
    text(page.get(path))
    assert PayoutAccount.objects.get().can_be_paid


def test_without_a_processor_the_page_says_so(earned, owner, settings):
    settings.STRIPE_API_KEY = ""
    assert "no payment processor yet" in text(browser(owner).get(reverse("supplier-payouts")))
    assert "no payment processor yet" in text(browser(owner).post(reverse("supplier-connect")), 409)


def test_who_sells_nothing_has_no_statements(alice, acme):
    assert browser(alice).get(reverse("supplier-statements")).status_code == 404
    assert make_organization("Second", alice).is_supplier is False
