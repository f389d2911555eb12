"""A supplier's statement as files: CSV for spreadsheets, PDF for people, in English and Japanese."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from io import BytesIO
from typing import Any

from reportlab.lib.pagesizes import A4
from reportlab.lib.units import mm
from reportlab.platypus import KeepTogether, LongTable, SimpleDocTemplate, Spacer, Table

from billing.models import StatementLine, SupplierStatement
from marketplace.invoices.export import Echo, harmless
from marketplace.invoices.pdf import INK, MARGIN, PADDING, RULE, TIGHT, WIDTH, Page, foot, hours
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
            self.head(),
            Spacer(1, 6 * mm),
            self.who(),
            Spacer(1, 8 * mm),
            self.table(lines),
            Spacer(1, 4 * mm),
            KeepTogether([self.sums(), Spacer(1, 6 * mm), self.text(self.words["note"])]),
        ]

    def head(self) -> Table:
        row, said = self.statement, self.words
        rows = [
            (said["number"], row.number),
            (said["issued"], day(row.issued_at)),
            (said["period"], f"{day(row.period_start)} – {day(row.period_end)}"),
        ]
        cells = [[self.text(name), self.text(value, self.strong)] for name, value in rows]
        return Table(cells, colWidths=[40 * mm, WIDTH - 40 * mm], style=[("LEFTPADDING", (0, 0), (0, -1), 0), *TIGHT])

    def who(self) -> Table:
        cells = [
            [self.text(self.words["payer"]), self.text(self.words["party"])],
            [self.party(self.statement.platform), self.party(self.statement.party)],
        ]
        return Table(
            cells, colWidths=[WIDTH / 2] * 2,
            style=[("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (0, -1), 0), *TIGHT],
        )  # fmt: skip

    def table(self, lines: Iterable[StatementLine]) -> LongTable:
        head = [self.text(self.words["what"], self.strong)]
        head += [self.text(self.words[name], self.strong_right) for name in ("used", "charged", "owed")]
        return LongTable(
            [head, *(self.row(line) for line in lines)],
            colWidths=[WIDTH - 96 * mm, 28 * mm, 34 * mm, 34 * mm], repeatRows=1,
            style=[
                ("LINEBELOW", (0, 0), (-1, 0), 0.8, INK), ("LINEBELOW", (0, 1), (-1, -1), 0.4, RULE),
                ("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (0, -1), 0),
                ("RIGHTPADDING", (-1, 0), (-1, -1), 0),
            ],
        )  # fmt: skip

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

    def sums(self) -> Table:
        row, said = self.statement, self.words
        rows = [
            (said["opening"], row.opening_micros, False),
            (said["earned"], row.payout_micros + row.reserve_micros, False),
            (said["adjusted"], row.adjustment_micros, False),
            (said["paid"], -row.paid_micros, False),
            (said["closing"], row.closing_micros, True),
            (said["held"], row.held_micros, False),
        ]
        cells = [
            [
                self.text(name, self.strong if is_strong else self.body),
                self.text(self.money(micros), self.strong_right if is_strong else self.right),
            ]
            for name, micros, is_strong in rows
        ]
        return Table(
            cells, colWidths=[56 * mm, 34 * mm], hAlign="RIGHT",
            style=[("RIGHTPADDING", (-1, 0), (-1, -1), 0), ("LINEABOVE", (0, 4), (-1, 4), 0.8, INK), *TIGHT],
        )  # fmt: skip
