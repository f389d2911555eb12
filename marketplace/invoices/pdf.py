"""An invoice as PDF, drawn from its rows alone: the same bytes each time, however much later.

The fonts are two that every reader of PDF has or replaces: Helvetica for Western
text, HeiseiKakuGo-W5 for Japanese. So we ship no font, and a letter that neither
has is written as its base letter.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import Any
from xml.sax.saxutils import escape

from django.conf import settings
from django.urls import reverse
from reportlab.lib import colors
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.platypus import KeepTogether, LongTable, Paragraph, SimpleDocTemplate, Spacer, Table

from billing.models import Invoice, InvoiceLine
from marketplace.invoices.words import MARKETS, METERS, WORDS, day, minute, percent, title, treatment
from marketplace.money import shown

WESTERN, WESTERN_BOLD, JAPANESE = "Helvetica", "Helvetica-Bold", "HeiseiKakuGo-W5"
MARGIN = 18 * mm
PADDING = 6  # of a page's frame, in points
WIDTH = A4[0] - 2 * MARGIN
HOUR_MS = 3_600_000
STROKED = {"Ł": "L", "ł": "l", "Đ": "D", "đ": "d", "ı": "i", "Ħ": "H", "ħ": "h"}
INK, RULE = colors.HexColor("#1b1f24"), colors.HexColor("#c8ced6")

pdfmetrics.registerFont(UnicodeCIDFont(JAPANESE))


def drawn(invoice: Invoice, lines: Iterable[InvoiceLine]) -> bytes:
    """Return an invoice or credit note as PDF, in its customer's language."""
    page = _Invoice(invoice)
    out = BytesIO()
    document = SimpleDocTemplate(
        out, pagesize=A4, leftMargin=MARGIN - PADDING, rightMargin=MARGIN - PADDING, topMargin=MARGIN,
        bottomMargin=MARGIN, title=f"{title(invoice)} {invoice.number}", author=invoice.seller["name"], invariant=1,
    )  # fmt: skip
    drawn_foot = partial(foot, invoice.number, invoice.language)
    document.build(page.parts(lines), onFirstPage=drawn_foot, onLaterPages=drawn_foot)
    return out.getvalue()


def foot(number: str, language: str, canvas: Any, document: Any) -> None:
    """Draw what stands beneath each page: whose it is and how many."""
    said = WORDS[language]["page"].format(page=document.page)
    canvas.setFont(JAPANESE if language == "ja" else WESTERN, 8)
    canvas.setFillColor(INK)
    canvas.drawString(MARGIN, 10 * mm, number)
    canvas.drawRightString(A4[0] - MARGIN, 10 * mm, said)


class Page:
    """The looks of a document: fonts, text, money and parties, in one language and currency."""

    def __init__(self, *, language: str, currency: str) -> None:
        self.currency = currency
        self.said = WORDS[language]
        is_japanese = language == "ja"
        self.font, self.bold = (JAPANESE, JAPANESE) if is_japanese else (WESTERN, WESTERN_BOLD)
        plain = {"fontSize": 9, "leading": 13, "textColor": INK, "wordWrap": "CJK" if is_japanese else None}
        self.body = ParagraphStyle("body", fontName=self.font, **plain)
        self.right = ParagraphStyle("right", self.body, alignment=TA_RIGHT, wordWrap=None)
        self.strong = ParagraphStyle("strong", self.body, fontName=self.bold)
        self.strong_right = ParagraphStyle("strong right", self.right, fontName=self.bold)
        self.heading = ParagraphStyle("heading", self.strong, fontSize=20, leading=28)

    def text(self, text: str, style: ParagraphStyle | None = None) -> Paragraph:
        style = style or self.body
        marked = "<br/>".join(_marked(line, style.fontName) for line in text.splitlines())
        return Paragraph(marked, style)

    def money(self, micros: int) -> str:
        return shown(micros, self.currency)

    def party(self, party: dict[str, str]) -> list[Paragraph]:
        told = [self.text(party["name"], self.strong)]
        told += [self.text(line) for line in [*party["address"].splitlines(), party["country"]] if line]
        if party["tax_id"]:
            name = self.said["registration" if party["country"] == "JP" else "tax_id"]
            told.append(self.text(f"{name}: {party['tax_id']}"))
        return told

    def facts(self, rows: Iterable[tuple[str, str]]) -> Table:
        """What a document is, a name and a value in each row."""
        cells = [[self.text(name), self.text(value, self.strong)] for name, value in rows]
        return Table(cells, colWidths=[40 * mm, WIDTH - 40 * mm], style=[("LEFTPADDING", (0, 0), (0, -1), 0), *TIGHT])

    def parties(self, *sides: tuple[str, dict[str, str]]) -> Table:
        """Who it is between, side by side under their roles."""
        cells = [[self.text(role) for role, _party in sides], [self.party(party) for _role, party in sides]]
        return Table(
            cells, colWidths=[WIDTH / 2] * 2,
            style=[("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (0, -1), 0), *TIGHT],
        )  # fmt: skip

    def lines(self, heads: Sequence[str], rows: Iterable[list[Any]], *, widths: Sequence[float]) -> LongTable:
        """The lines of a document, whose heads stand on every page that they go over."""
        head = [self.text(heads[0], self.strong), *(self.text(name, self.strong_right) for name in heads[1:])]
        return LongTable(
            [head, *rows], colWidths=[WIDTH - sum(widths), *widths], repeatRows=1,
            style=[
                ("LINEBELOW", (0, 0), (-1, 0), 0.8, INK), ("LINEBELOW", (0, 1), (-1, -1), 0.4, RULE),
                ("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (0, -1), 0),
                ("RIGHTPADDING", (-1, 0), (-1, -1), 0),
            ],
        )  # fmt: skip

    def sums(self, rows: Sequence[tuple[str, int, bool]], *, ruled: int) -> Table:
        """Amounts under each other; some are strong, and a line is drawn above the row with this number."""
        cells = [
            [
                self.text(name, self.strong if is_strong else self.body),
                self.text(self.money(micros), self.strong_right if is_strong else self.right),
            ]
            for name, micros, is_strong in rows
        ]
        return Table(
            cells, colWidths=[56 * mm, 34 * mm], hAlign="RIGHT",
            style=[("RIGHTPADDING", (-1, 0), (-1, -1), 0), ("LINEABOVE", (0, ruled), (-1, ruled), 0.8, INK), *TIGHT],
        )  # fmt: skip


class _Invoice(Page):
    """The parts of one invoice's pages, from top to bottom."""

    def __init__(self, invoice: Invoice) -> None:
        super().__init__(language=invoice.language, currency=invoice.currency)
        self.invoice = invoice

    def parts(self, lines: Iterable[InvoiceLine]) -> list[Any]:
        return [
            self.text(title(self.invoice), self.heading),
            Spacer(1, 3 * mm),
            self.facts(self.what()),
            Spacer(1, 6 * mm),
            self.parties((self.said["seller"], self.invoice.seller), (self.said["customer"], self.invoice.customer)),
            Spacer(1, 8 * mm),
            self.lines(
                [self.said[name] for name in ("description", "used", "price", "amount")],
                map(self.line, lines),
                widths=[44 * mm, 28 * mm, 28 * mm],
            ),
            Spacer(1, 4 * mm),
            KeepTogether([self.totals(), Spacer(1, 6 * mm), *self.taxes(), *self.notes()]),
        ]

    def what(self) -> list[tuple[str, str]]:
        invoice, said = self.invoice, self.said
        rows = [
            (said["number"], invoice.number),
            (said["issued"], day(invoice.issued_at)),
            (said["period"], f"{minute(invoice.period_start)} – {minute(invoice.period_end)}"),
        ]
        if invoice.credited is not None:
            rows += [(said["credited"], invoice.credited.number), (said["reason"], invoice.reason)]
        return rows

    def line(self, line: InvoiceLine) -> list[Paragraph]:
        if not line.meter:
            return [self.text(line.resource_name), *map(self.text, ("", "")), self.amount(line)]
        language = self.invoice.language
        kinds = [METERS[language].get(line.meter, line.meter)]
        kinds += [MARKETS[language].get(line.market, line.market)] if line.market else []
        kinds += [self.said["late"]] if line.is_late else []
        about = f"{line.resource_name} ({', '.join(kinds)})\n{line.resource_id}\n"
        about += f"{minute(line.starts_at)} – {minute(line.ends_at)}"
        price = line.micros_per_unit_hour
        return [
            self.text(about),
            self.text(f"{hours(line.unit_milliseconds)} {self.said[line.unit]}", self.right),
            self.text(
                self.said["floating"] if price is None else shown(price, self.invoice.currency, exact=True), self.right
            ),
            self.amount(line),
        ]

    def amount(self, line: InvoiceLine) -> Paragraph:
        return self.text(self.money(line.amount_micros), self.right)

    def totals(self) -> Table:
        invoice, said = self.invoice, self.said
        rows = [(said["subtotal"], invoice.subtotal_micros, False)] if invoice.promo_micros else []
        rows += [(said["promo"], -invoice.promo_micros, False)] if invoice.promo_micros else []
        rows += [(said["net"], invoice.net_micros, False)]
        if invoice.tax_rate_bps:
            name = f"{said.get(invoice.tax_name, invoice.tax_name)} {percent(invoice.tax_rate_bps)}"
            rows += [(name, invoice.tax_micros, False)]
        rows += [(said["total_back" if invoice.is_credit_note else "total"], invoice.total_micros, True)]
        if not invoice.is_credit_note:
            rows += [(said["paid"], -invoice.paid_micros, False), (said["due"], invoice.due_micros, True)]
        return self.sums(rows, ruled=-1)

    def taxes(self) -> list[Any]:
        """The amounts by rate, which a Japanese qualified invoice has to show."""
        invoice, said = self.invoice, self.said
        if not invoice.tax_rate_bps:
            return []
        head = [self.text(said[name], self.strong_right) for name in ("rate", "taxable", "tax")]
        row = [percent(invoice.tax_rate_bps), self.money(invoice.net_micros), self.money(invoice.tax_micros)]
        table = Table(
            [head, [self.text(cell, self.right) for cell in row]], colWidths=[24 * mm, 40 * mm, 34 * mm],
            hAlign="LEFT", style=[("LINEBELOW", (0, 0), (-1, 0), 0.8, INK), ("LEFTPADDING", (0, 0), (0, -1), 0)],
        )  # fmt: skip
        return [self.text(said["tax_table"], self.strong), Spacer(1, 1 * mm), table, Spacer(1, 5 * mm)]

    def notes(self) -> list[Paragraph]:
        invoice, said = self.invoice, self.said
        url = settings.PUBLIC_URL + reverse("invoice", args=[invoice.public_id])
        notes = [treatment(invoice), said["currency"].format(currency=invoice.currency)]
        notes += [] if invoice.is_credit_note else [said["proof"].format(url=url)]
        return [self.text(note) for note in notes if note]


TIGHT = [("TOPPADDING", (0, 0), (-1, -1), 1), ("BOTTOMPADDING", (0, 0), (-1, -1), 1)]


def hours(milliseconds: int) -> str:
    """Return unit-hours with three decimals, without a float."""
    sign = "-" if milliseconds < 0 else ""
    whole, rest = divmod(abs(milliseconds) * 1000 // HOUR_MS, 1000)
    return f"{sign}{whole:,}.{rest:03}"


def _marked(text: str, font: str) -> str:
    """Return a text for a Paragraph in which what the font lacks is set in the other one."""
    runs: list[tuple[str, str]] = []
    for character, wanted in _in_fonts(text, font):
        if runs and runs[-1][0] == wanted:
            runs[-1] = (wanted, runs[-1][1] + character)
        else:
            runs.append((wanted, character))
    return "".join(
        escape(run) if wanted == font else f'<font name="{wanted}">{escape(run)}</font>' for wanted, run in runs
    )


def _in_fonts(text: str, font: str) -> Iterator[tuple[str, str]]:
    western = WESTERN if font == JAPANESE else font
    for character in text:
        if _has("cp1252", character):
            yield character, western
        elif _has("shift_jis", character):
            yield character, JAPANESE
        else:
            base = STROKED.get(character) or unicodedata.normalize("NFKD", character)[0]
            yield (base if _has("cp1252", base) else "?"), western


def _has(encoding: str, character: str) -> bool:
    """Return whether a font has a letter: Helvetica those of cp1252, the Japanese one those of JIS X 0208."""
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
