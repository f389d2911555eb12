"""A supplier's statement as files: CSV for spreadsheets, PDF for people, in English and Japanese."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from io import BytesIO
from typing import Any

from reportlab.lib.pagesizes import A4
from reportlab.lib.units import mm
from reportlab.platypus import KeepTogether, SimpleDocTemplate, Spacer

from billing.models import StatementLine, SupplierStatement
from marketplace.invoices.export import Echo, harmless
from marketplace.invoices.pdf import MARGIN, PADDING, Page, foot, hours
from marketplace.invoices.words import day
from marketplace.money import decimal_string

COLUMNS = (
    "statement", "line", "offer", "node", "month", "text", "gpu_milliseconds", "charged", "payout", "held_back",
    "fee", "adjustment", "currency",
)  # fmt: skip
SAID: Mapping[str, Mapping[str, str]] = {
    "en": {
        "title": "Statement", "number": "Number", "issued": "Issued", "period": "Period (UTC)", "payer": "From",
        "party": "To", "what": "Offer, node and month", "used": "GPU-hours", "charged": "Paid by customers",
        "owed": "Yours", "opening": "Carried forward", "earned": "Earned", "adjusted": "Adjustments",
        "paid": "Paid out", "closing": "Balance", "held": "of it held back",
        "note": "What is held back is paid out with a later statement. A balance below zero is carried forward.",
        "ahead": "paid ahead by reservations",
    },
    "ja": {
        "title": "支払明細書", "number": "番号", "issued": "発行日", "period": "対象期間（UTC）", "payer": "発行者",
        "party": "宛先", "what": "商品・ノード・月", "used": "GPU時間", "charged": "顧客の支払額",
        "owed": "御社取分", "opening": "繰越残高", "earned": "今期の取分", "adjusted": "調整額",
        "paid": "支払済", "closing": "残高", "held": "うち留保分",
        "note": "留保分は後の明細書で支払われます。残高がマイナスの場合は次回に繰り越されます。",
        "ahead": "予約による前払分",
    },
}  # fmt: skip


def csv_of(statement: SupplierStatement, lines: Iterable[StatementLine]) -> Iterator[str]:
    """Yield a statement's lines as CSV (RFC 4180), the names of the columns first."""
    writer = csv.writer(Echo())
    yield writer.writerow(COLUMNS)
    for line in lines:
        figures = (line.charge_micros, line.payout_micros, line.reserve_micros, line.fee_micros, line.adjustment_micros)
        yield writer.writerow(
            [
                statement.number,
                line.key,
                line.offer,
                line.node,
                f"{line.month:%Y-%m}" if line.month else "",
                harmless(line.text),
                line.unit_milliseconds,
                *map(decimal_string, figures),
                statement.currency,
            ]
        )


def pdf_of(statement: SupplierStatement, lines: Iterable[StatementLine]) -> bytes:
    """Return a statement as PDF, in its supplier's language."""
    said = SAID[statement.language]
    out = BytesIO()
    document = SimpleDocTemplate(
        out, pagesize=A4, leftMargin=MARGIN - PADDING, rightMargin=MARGIN - PADDING, topMargin=MARGIN,
        bottomMargin=MARGIN, title=f"{said['title']} {statement.number}", author=statement.platform["name"],
        invariant=1,
    )  # fmt: skip
    drawn = partial(foot, statement.number, statement.language)
    document.build(_Statement(statement).statement_parts(lines), onFirstPage=drawn, onLaterPages=drawn)
    return out.getvalue()


class _Statement(Page):
    """The parts of a statement, in the looks of an invoice."""

    def __init__(self, statement: SupplierStatement) -> None:
        super().__init__(language=statement.language, currency=statement.currency)
        self.statement, self.words = statement, SAID[statement.language]

    def statement_parts(self, lines: Iterable[StatementLine]) -> list[Any]:
        return [
            self.text(self.words["title"], self.heading),
            Spacer(1, 3 * mm),
            self.facts(self.what()),
            Spacer(1, 6 * mm),
            self.parties((self.words["payer"], self.statement.platform), (self.words["party"], self.statement.party)),
            Spacer(1, 8 * mm),
            self.lines(
                [self.words[name] for name in ("what", "used", "charged", "owed")],
                map(self.row, lines),
                widths=[28 * mm, 34 * mm, 34 * mm],
            ),
            Spacer(1, 4 * mm),
            KeepTogether([self.sums(self.balance(), ruled=4), Spacer(1, 6 * mm), self.text(self.words["note"])]),
        ]

    def what(self) -> list[tuple[str, str]]:
        row, said = self.statement, self.words
        return [
            (said["number"], row.number),
            (said["issued"], day(row.issued_at)),
            (said["period"], f"{day(row.period_start)} – {day(row.period_end)}"),
        ]

    def row(self, line: StatementLine) -> list[Any]:
        if line.month is None:
            return [self.text(line.text), "", "", self.text(self.money(line.adjustment_micros), self.right)]
        about = f"{line.offer}\n{line.node or self.words['ahead']}\n{line.month:%Y-%m}"
        return [
            self.text(about),
            self.text(hours(line.unit_milliseconds), self.right),
            self.text(self.money(line.charge_micros), self.right),
            self.text(self.money(line.payout_micros + line.reserve_micros), self.right),
        ]

    def balance(self) -> list[tuple[str, int, bool]]:
        row, said = self.statement, self.words
        return [
            (said["opening"], row.opening_micros, False),
            (said["earned"], row.payout_micros + row.reserve_micros, False),
            (said["adjusted"], row.adjustment_micros, False),
            (said["paid"], -row.paid_micros, False),
            (said["closing"], row.closing_micros, True),
            (said["held"], row.held_micros, False),
        ]
