"""The processor's pages, in English and Japanese. They load nothing and run nothing."""

from collections.abc import Mapping
from html import escape

from billing.invoicing.rounding import MINOR_DIGITS
from billing.test_processor.cards import CARDS
from billing.test_processor.world import Thing

WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "notice": "This is the bundled test processor: no card is real, and no money moves.",
        "pay": "Pay {amount}",
        "save": "Save a card",
        "number": "Card number",
        "month": "Month",
        "year": "Year",
        "cvc": "Security code",
        "send_pay": "Pay",
        "send_save": "Save this card",
        "back": "Back without paying",
        "cards": "Cards to try",
        "proof": "Your bank asks: is this you?",
        "yes": "Yes, it is me",
        "no": "No, refuse it",
        "papers": "Papers of a supplier",
        "papers_text": "Here a supplier gives the processor their papers and their bank account.",
        "papers_send": "Give all papers",
        "home": "Test processor",
    },
    "ja": {
        "notice": "これは同梱のテスト決済処理です。カードは本物ではなく、お金は動きません。",
        "pay": "{amount} を支払う",
        "save": "カードを保存する",
        "number": "カード番号",
        "month": "月",
        "year": "年",
        "cvc": "セキュリティコード",
        "send_pay": "支払う",
        "send_save": "このカードを保存する",
        "back": "支払わずに戻る",
        "cards": "試せるカード",
        "proof": "銀行からの確認:ご本人ですか。",
        "yes": "はい、本人です",
        "no": "いいえ、拒否する",
        "papers": "供給者の書類",
        "papers_text": "供給者はここで書類と銀行口座を決済処理に渡します。",
        "papers_send": "書類をすべて渡す",
        "home": "テスト決済処理",
    },
}
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 26rem; }
h1 { font-size: 1.5rem; }
.notice { border-left: .25rem solid #b26a00; padding: .25rem .75rem; }
.error { border-left: .25rem solid #c62828; padding: .25rem .75rem; }
label { display: block; margin-top: .75rem; }
input { box-sizing: border-box; width: 100%; padding: .6rem; font: inherit; border: 1px solid #888;
  border-radius: .4rem; }
.row { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: .75rem; }
button { width: 100%; margin-top: 1rem; padding: .75rem; font: inherit; font-weight: 600; border: 0; cursor: pointer;
  border-radius: .4rem; background: #3949ab; color: #fff; }
button.plain { background: transparent; color: inherit; border: 1px solid #888; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td { border-top: 1px solid #8884; padding: .35rem .25rem; vertical-align: top; }
code { white-space: nowrap; }
"""


def payment(session: Thing, *, language: str, error: str = "", number: str = "") -> str:
    """The page on which a card is typed, to pay with it or to keep it."""
    words = WORDS[language]
    is_payment = session["mode"] == "payment"
    title = words["pay"].format(amount=amount(session)) if is_payment else words["save"]
    told = f'<p class="error" role="alert">{escape(error)}</p>' if error else ""
    back = escape(str(session["cancel_url"] or ""))
    return page(
        language,
        title,
        f"""{told}<form method="post">
<label for="number">{words["number"]}</label>
<input id="number" name="number" value="{escape(number)}" inputmode="numeric" autocomplete="off" required
 maxlength="19" placeholder="4242 4242 4242 4242">
<div class="row">
<div><label for="month">{words["month"]}</label><input id="month" name="month" value="12" maxlength="2" required></div>
<div><label for="year">{words["year"]}</label><input id="year" name="year" value="2034" maxlength="4" required></div>
<div><label for="cvc">{words["cvc"]}</label><input id="cvc" name="cvc" value="123" maxlength="4" required></div>
</div>
<button>{words["send_pay"] if is_payment else words["send_save"]}</button></form>
<p><a href="{back}">{words["back"]}</a></p>{cards(language)}""",
    )


def proof(*, language: str) -> str:
    """The page of a bank that asks whether it is them (3-D Secure)."""
    words = WORDS[language]
    return page(
        language,
        words["proof"],
        f"""<form method="post"><button name="answer" value="yes">{words["yes"]}</button>
<button class="plain" name="answer" value="no">{words["no"]}</button></form>""",
    )


def papers(*, language: str) -> str:
    """The page on which a supplier gives the processor their papers."""
    words = WORDS[language]
    button = f"<button>{words['papers_send']}</button>"
    return page(language, words["papers"], f'<p>{words["papers_text"]}</p><form method="post">{button}</form>')


def home(*, language: str) -> str:
    """What this is, and which cards there are."""
    return page(language, WORDS[language]["home"], cards(language))


def cards(language: str) -> str:
    """The table of test cards."""
    rows = "".join(f"<tr><td><code>{number}</code></td><td>{card.text}</td></tr>" for number, card in CARDS.items())
    return f"<h2>{WORDS[language]['cards']}</h2><table>{rows}</table>"


def page(language: str, title: str, inner: str) -> str:
    """A whole page."""
    return f"""<!doctype html><html lang="{language}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>
<link rel="stylesheet" href="/style.css"></head><body><main><p class="notice">{WORDS[language]["notice"]}</p>
<h1>{escape(title)}</h1>{inner}</main></body></html>"""


def amount(session: Thing) -> str:
    """Return the amount of a session as people read it."""
    currency, units = str(session["currency"]).upper(), int(session["amount_total"])
    digits = MINOR_DIGITS.get(currency, 2)
    if not digits:
        return f"{units:,} {currency}"
    whole, rest = divmod(units, int(f"1{'0' * digits}"))
    return f"{whole:,}.{rest:0{digits}} {currency}"
