"""Invoices through the API: what a program lists, downloads and works out again."""

import csv
import io
from decimal import Decimal
from uuid import uuid4

import pytest

from billing.invoicing import crediting, issuing
from billing.models import Invoice
from marketplace.invoices import export
from marketplace.models import AuditEntry, Organization, User
from tests.billing.invoicing import CLOSE
from tests.conftest import make_member, make_token
from tests.marketplace.api.program import Program, problem_of
from tests.marketplace.invoices.conftest import invoice, seller, use_beyond_credit, use_last_month

__all__ = ["invoice", "seller"]

PAPER = {"legal_name": "Acme AS", "address": "Storgata 1\n0155 Oslo", "country": "NO", "tax_id": "995 525 828"}


def details_path(acme: Organization) -> str:
    return f"organizations/{acme.public_id}/billing-details"


def test_the_list_has_number_totals_and_what_is_due(program: Program, invoice: Invoice) -> None:
    (row,) = program.get("invoices").json()["data"]
    assert (row["number"], row["currency"], row["kind"]) == ("INV-000001", "USD", "invoice")
    assert (row["subtotal"], row["promo"], row["net"], row["total"]) == (
        "17.400000", "7.400000", "10.000000", "12.500000"
    )  # fmt: skip
    assert row["taxes"] == [
        {"treatment": "domestic", "country": "NO", "name": "MVA", "rate_bps": 2500, "taxable": "10.000000",
         "tax": "2.500000"}
    ]  # fmt: skip
    assert program.get(f"invoices/{row['id']}").json() == row


def test_lines_come_as_json_and_as_csv_with_the_same_figures(program: Program, invoice: Invoice) -> None:
    lines = program.get(f"invoices/{invoice.public_id}/lines").json()["data"]
    answer = program.get(f"invoices/{invoice.public_id}/lines.csv", Accept="text/csv")
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode())))
    assert list(rows[0]) == list(export.COLUMNS)
    assert {(row["line"], row["exact"], row["amount"], row["unit_milliseconds"]) for row in rows} == {
        (line["id"], line["exact"], line["amount"], str(line["unit_milliseconds"])) for line in lines
    }
    assert {row["name"] for row in rows} == {"trainer", "'=datasets"}


def test_the_pdf_is_one(program: Program, invoice: Invoice) -> None:
    answer = program.get(f"invoices/{invoice.public_id}/pdf", Accept="application/pdf")
    assert answer["Content-Type"] == "application/pdf"
    assert answer["Content-Disposition"] == 'attachment; filename="INV-000001.pdf"'
    assert answer.content.startswith(b"%PDF-")


def test_the_proof_works_every_line_out_again(program: Program, invoice: Invoice) -> None:
    proof = program.get(f"invoices/{invoice.public_id}/proof").json()
    assert proof["totals"]["agrees"]
    assert all(line["agrees"] for line in proof["data"])
    (gpus,) = [line for line in proof["data"] if "/gpu/" in line["line"]]
    (span,) = gpus["spans"]
    assert span["unit_milliseconds"] == 2 * 3 * 3_600_000
    assert [(step["milliseconds"], step["price_per_unit_hour"]) for step in span["steps"]] == [(10_800_000, "2.500000")]
    assert (span["cost_through_end"], span["amount"], gpus["amount"]) == ("15.000000", "15.000000", "15.000000")


def test_the_proof_is_paged_by_line(program: Program, invoice: Invoice) -> None:
    first = program.get(f"invoices/{invoice.public_id}/proof?limit=1").json()
    second = program.get(f"invoices/{invoice.public_id}/proof?limit=1&cursor={first['next_cursor']}").json()
    assert len({line["line"] for line in first["data"] + second["data"]}) == 2
    assert second["next_cursor"] is None


def test_a_credit_note_is_in_the_list_and_names_its_invoice(
    program: Program, seller: Organization, acme: Organization, carol: User, alice: User
) -> None:
    use_last_month(acme)
    use_beyond_credit(acme)
    first = issuing.issue(organization=acme, at=CLOSE)
    proposal = crediting.propose(invoice=first, net_micros=1_000_000, reason="slow", by=carol.pk, key=uuid4(), at=CLOSE)
    crediting.approve(proposal=proposal, by=alice.pk, at=CLOSE)
    note, asked = program.get("invoices").json()["data"]
    assert (note["kind"], note["total"], note["reason"]) == ("credit_note", "1.250000", "slow")
    assert note["credits"] == {"id": asked["id"], "number": "INV-000001"}
    assert program.get(f"invoices/{note['id']}/proof").json()["totals"]["agrees"]
    owed = Decimal(program.get("balance").json()["owed"])
    assert Decimal(asked["due"]) == owed > 0


@pytest.mark.parametrize("path", ["", "/lines", "/lines.csv", "/pdf", "/proof"])
def test_a_stranger_finds_nothing(invoice: Invoice, charlie: User, path: str) -> None:
    theirs = Organization.objects.get(name="Other")
    stranger = Program(make_token(charlie, theirs))
    problem_of(stranger.get(f"invoices/{invoice.public_id}{path}"), 404, "not_found")


def test_a_developer_may_not_see_invoices(invoice: Invoice, acme: Organization) -> None:
    developer = Program(make_token(make_member(acme, "dev@acme.example", "developer"), acme))  # type: ignore[arg-type]
    problem_of(developer.get("invoices"), 403, "permission_denied")


def test_billing_details_are_kept_in_one_form_and_written_into_the_audit(program: Program, acme: Organization) -> None:
    assert program.get(details_path(acme)).json()["legal_name"] == ""
    answer = program.ask("put", details_path(acme), PAPER)
    assert answer.status_code == 200, answer.content
    assert answer.json()["tax_id"] == "995525828MVA"
    assert program.get(details_path(acme)).json() == answer.json()
    entry = AuditEntry.objects.get(verb="billing_details.change")
    assert entry.after["legal_name"] == "Acme AS"
    program.ask("put", details_path(acme), PAPER)
    assert AuditEntry.objects.filter(verb="billing_details.change").count() == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tax_id", "995525829"), ("tax_id", "x" * 33), ("country", "N"), ("country", "no"), ("country", "N1"),
        ("country", "UK"), ("country", "EL"), ("country", "ZZ"),
        ("legal_name", ""), ("legal_name", "a\x07b"), ("legal_name", "n" * 201), ("address", "\n \n"),
        ("address", "\n".join("abcdefgh")), ("address", "a\x00b"), ("email", "nobody"), ("language", "de"),
    ],
)  # fmt: skip
def test_bad_billing_details_are_refused_and_change_nothing(
    program: Program, acme: Organization, field: str, value: str
) -> None:
    program.ask("put", details_path(acme), PAPER)
    before = program.get(details_path(acme)).json()
    problem_of(
        program.ask("put", details_path(acme), PAPER | {field: value}), 422, "invalid_request", names=f"/{field}"
    )
    assert program.get(details_path(acme)).json() == before


def test_a_tax_id_belongs_to_its_country(program: Program, acme: Organization) -> None:
    problem = problem_of(
        program.ask("put", details_path(acme), PAPER | {"country": "DE"}), 422, "invalid_request", names="/tax_id"
    )
    assert "DE136695976" in problem["detail"]
