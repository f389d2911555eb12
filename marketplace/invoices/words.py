"""The words of documents, which are in the customer's language and not in that of whoever looks at them.

They stand here side by side and not in the catalogue: in Japan a qualified
invoice (Consumption Tax Act, article 57-4) has fixed terms, and an issued
document must not change its wording with a later translation.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from billing.invoicing.taxes import EU
from billing.models import Invoice

WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "invoice": "Invoice",
        "qualified_invoice": "Invoice",
        "credit_note": "Credit note",
        "qualified_credit_note": "Credit note",
        "number": "Number",
        "issued": "Date of issue",
        "period": "Period of use",
        "credited": "Credits invoice",
        "reason": "Reason",
        "seller": "From",
        "customer": "To",
        "tax_id": "Tax id",
        "registration": "Registration number",
        "description": "Description",
        "used": "Used",
        "price": "Price",
        "amount": "Amount",
        "gpu": "GPU-hours",
        "gib": "GiB-hours",
        "floating": "market price",
        "late": "earlier period",
        "subtotal": "Sum",
        "promo": "Promotional credit",
        "net": "Net amount",
        "total": "Total",
        "total_back": "Given back",
        "paid": "Paid from your balance",
        "due": "Amount due",
        "tax_table": "Amounts by tax rate",
        "rate": "Rate",
        "taxable": "Taxable amount",
        "tax": "Tax",
        "VAT": "VAT",
        "MVA": "MVA",
        "MWST": "VAT",
        "Consumption tax": "Consumption tax",
        "reverse_charge": "Reverse charge: the customer accounts for the tax.",
        "reverse_charge_eu": "Reverse charge: article 196 of Council Directive 2006/112/EC.",
        "outside": "Outside of the scope of the seller's tax.",
        "currency": "All amounts in {currency}. Times are UTC.",
        "proof": "How each line was computed: {url}",
        "page": "page {page}",
        "mail_subject": "{title} {number} of {seller}: {total}",
        "mail_hello": "Hello,",
        "mail_invoice": "attached is invoice {number} for your use from {start} to {end}.",
        "mail_credit": "attached is credit note {number}, which takes back part of invoice {credited}: {reason}.",
        "mail_total": "Total: {total}",
        "mail_paid": "Paid from your balance: {paid}",
        "mail_due": "Amount due: {due}",
        "mail_online": "See it with the arithmetic of each line: {url}",
    },
    "ja": {
        "invoice": "請求書",
        "qualified_invoice": "適格請求書",
        "credit_note": "返還請求書",
        "qualified_credit_note": "適格返還請求書",
        "number": "請求書番号",
        "issued": "発行日",
        "period": "ご利用期間",
        "credited": "対象の請求書",
        "reason": "理由",
        "seller": "発行者",
        "customer": "請求先",
        "tax_id": "税務番号",
        "registration": "登録番号",
        "description": "内容",
        "used": "ご利用量",
        "price": "単価",
        "amount": "金額",
        "gpu": "GPU時間",
        "gib": "GiB時間",
        "floating": "市場価格",
        "late": "以前の期間",
        "subtotal": "小計",
        "promo": "プロモーションクレジット",
        "net": "税抜金額",
        "total": "合計（税込）",
        "total_back": "返還額（税込）",
        "paid": "残高からお支払い済み",
        "due": "ご請求額",
        "tax_table": "税率ごとの合計",
        "rate": "税率",
        "taxable": "対象金額（税抜）",
        "tax": "税額",
        "VAT": "付加価値税",
        "MVA": "付加価値税（MVA）",
        "MWST": "付加価値税（MWST）",
        "Consumption tax": "消費税",
        "reverse_charge": "リバースチャージ方式：お客様が申告・納税する取引です。",
        "reverse_charge_eu": "リバースチャージ方式（理事会指令2006/112/EC第196条）：お客様が申告・納税する取引です。",
        "outside": "発行者の国の税の対象外の取引です。",
        "currency": "金額の単位は{currency}、時刻は協定世界時（UTC）です。",
        "proof": "各明細の計算方法：{url}",
        "page": "{page}ページ",
        "mail_subject": "{seller} {title} {number}：{total}",
        "mail_hello": "お客様各位",
        "mail_invoice": "{start}から{end}までのご利用分の請求書 {number} をお送りします。",
        "mail_credit": "請求書 {credited} の一部を返還する {number} をお送りします。理由：{reason}",
        "mail_total": "合計：{total}",
        "mail_paid": "残高からお支払い済み：{paid}",
        "mail_due": "ご請求額：{due}",
        "mail_online": "各明細の計算方法を含めて、こちらでご覧いただけます：{url}",
    },
}
METERS = {"en": {"gpu": "GPUs", "volume": "Volume"}, "ja": {"gpu": "GPU", "volume": "ボリューム"}}
MARKETS = {
    "en": {"on_demand": "on demand", "spot": "spot", "reserved": "reserved", "outcome": "results"},
    "ja": {"on_demand": "オンデマンド", "spot": "スポット", "reserved": "予約", "outcome": "成果"},
}


def title(invoice: Invoice) -> str:
    """Return what a document calls itself: in Japan, of a registered seller, by the name that the law gives it."""
    is_qualified = invoice.seller["country"] == "JP" and invoice.seller["tax_id"].startswith("T")
    return WORDS[invoice.language][f"qualified_{invoice.kind}" if is_qualified else invoice.kind]


def treatment(invoice: Invoice) -> str:
    """Return the sentence that an invoice without tax owes; empty for one with tax."""
    said = WORDS[invoice.language]
    if invoice.tax_treatment == Invoice.Treatment.REVERSE_CHARGE:
        within = {invoice.seller["country"], invoice.customer["country"]} <= EU
        return said["reverse_charge_eu" if within else "reverse_charge"]
    return said["outside"] if invoice.tax_treatment == Invoice.Treatment.OUTSIDE else ""


def percent(bps: int) -> str:
    """Return a rate as people read it, such as 25 % or 8.1 %."""
    whole, rest = divmod(bps, 100)
    return f"{whole}.{rest:02}".rstrip("0").rstrip(".") + " %"


def day(at: datetime) -> str:
    """Return a date as documents have it, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d}"


def minute(at: datetime) -> str:
    """Return a moment as documents have it, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"
