"""What the PDF says, read back from the file."""

from io import BytesIO

import pytest
from pypdf import PdfReader

from billing.invoicing import issuing, sellers
from billing.models import Invoice, InvoiceLine
from marketplace.invoices import pdf
from marketplace.models import Organization
from tests.billing.invoicing import CLOSE
from tests.marketplace.invoices.conftest import tokyo, use_last_month


def drawn(invoice: Invoice) -> bytes:
    return pdf.drawn(invoice, InvoiceLine.objects.filter(invoice=invoice).order_by("pk"))


def text_of(content: bytes) -> str:
    return "\n".join(page.extract_text() for page in PdfReader(BytesIO(content)).pages)


def test_an_english_invoice_says_who_what_and_how_much(invoice: Invoice) -> None:
    text = text_of(drawn(invoice))
    for said in (
        "Invoice", "INV-000001", "2026-04-01", "2026-03-01 00:00 – 2026-04-01 00:00",
        "GPU Operator AS", "8514 Narvik", "Tax id: 995525828MVA", "Acme",
        "trainer (GPUs, on demand)", "6.000 GPU-hours", "$2.50", "$15.00",
        "=datasets (Volume)", "24,000.000 GiB-hours", "$0.0001", "$2.40",
        "Promotional credit", "-$7.40", "$10.00", "$2.50", "$12.50",
        "MVA 25 %", "25 %", "Amount due", "$0.00", invoice.public_id,
    ):  # fmt: skip
        assert said in text, said


def test_the_same_invoice_is_the_same_file_each_time(invoice: Invoice) -> None:
    assert drawn(invoice) == drawn(Invoice.objects.get(pk=invoice.pk))


def test_a_japanese_invoice_has_the_fields_of_a_qualified_one(seller: Organization, acme: Organization) -> None:
    text = text_of(drawn(tokyo(seller, acme)))
    for said in (
        "適格請求書", "株式会社ジーピーユー", "登録番号", "T5835678256246",  # who issues, under which number
        "2026-03-01", "発行日", "ご利用期間",  # when
        "学習", "GPU", "スポット",  # what
        "税率ごとの合計", "10 %", "対象金額", "¥2,400", "消費税 10 %", "¥240", "¥2,640",  # by rate, and the tax of it
        "アクメ研究所",  # to whom
    ):  # fmt: skip
        assert said in text.replace("\n", ""), said


def test_japanese_in_an_english_invoice_and_western_in_a_japanese_one_are_both_written(
    seller: Organization, acme: Organization
) -> None:
    sellers.save_details(organization=acme, legal_name="株式会社 Zoë & Söhne <b>", address="Łódź", country="NO")
    use_last_month(acme)
    text = text_of(drawn(issuing.issue(organization=acme, at=CLOSE)))
    assert "株式会社" in text
    assert "Zoë & Söhne <b>" in text
    assert "Lódz" in text


def test_reverse_charge_is_said_and_no_tax_is_asked(seller: Organization, acme: Organization) -> None:
    sellers.save_details(
        organization=acme, legal_name="Acme GmbH", address="Berlin", country="DE", tax_id="DE136695976"
    )
    use_last_month(acme)
    text = text_of(drawn(issuing.issue(organization=acme, at=CLOSE)))
    assert "Reverse charge" in text
    assert "MVA" not in text.replace("995525828MVA", "")


@pytest.mark.parametrize("count", [300])
def test_many_lines_go_over_pages_with_their_heads(invoice: Invoice, count: int) -> None:
    lines = [InvoiceLine.objects.filter(invoice=invoice).first()] * count
    reader = PdfReader(BytesIO(pdf.drawn(invoice, lines)))  # type: ignore[arg-type]
    assert len(reader.pages) > 10
    for number, page in enumerate(reader.pages[:10], 1):
        assert "Description" in page.extract_text()
        assert f"page {number}" in page.extract_text()


def test_nothing_is_drawn_outside_of_the_page(invoice: Invoice) -> None:
    long = InvoiceLine.objects.filter(invoice=invoice).first()
    assert long is not None
    long.resource_name = "a very long name " * 11
    places: list[tuple[float, float]] = []

    def seen(text: str, cm: list[float], tm: list[float], font: object, size: float) -> None:
        if text.strip():
            places.append((tm[4] + cm[4], tm[5] + cm[5]))

    for page in PdfReader(BytesIO(pdf.drawn(invoice, [long]))).pages:
        page.extract_text(visitor_text=seen)
    assert len(places) > 20
    assert all(0 <= x <= 595 and 0 <= y <= 842 for x, y in places)
