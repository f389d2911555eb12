"""Why a card was declined, in the customer's language, by the processor's code; its own words where we have none.

Codes: https://docs.stripe.com/declines/codes. Of a card that is lost or stolen, or a charge that looks like a fraud,
whoever holds the card learns no more than that the bank said no, as the processor advises.
"""

from collections.abc import Mapping

from django.utils.translation import get_language

OTHER_BANK = (
    "The bank declined the card and gave no reason. Ask it, or use another card.",
    "カードが承認されませんでした（理由は不明）。銀行にお問い合わせいただくか、別のカードをお使いください。",
)
UNKNOWN_TO_CUSTOMER = (
    "card_declined", "generic_decline", "do_not_honor", "call_issuer", "no_action_taken", "not_permitted",
    "restricted_card", "revocation_of_authorization", "security_violation", "service_not_allowed",
    "stop_payment_order", "transaction_not_allowed", "lost_card", "stolen_card", "pickup_card", "fraudulent",
    "merchant_blacklist",
)  # fmt: skip
WORDS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(UNKNOWN_TO_CUSTOMER, OTHER_BANK),
    "insufficient_funds": (
        "The card has not enough money. Use another card, or try again later.",
        "カードの残高または利用枠が足りません。別のカードを使うか、後でもう一度お試しください。",
    ),
    "withdrawal_count_limit_exceeded": (
        "The card has reached its limit. Use another card.",
        "カードの利用限度額に達しています。別のカードをお使いください。",
    ),
    "card_velocity_exceeded": (
        "The card was used too often in a short time. Use another card, or try again later.",
        "カードが短時間に何度も使われました。別のカードを使うか、後でもう一度お試しください。",
    ),
    "expired_card": (
        "The card has expired. Use another card.",
        "カードの有効期限が切れています。別のカードをお使いください。",
    ),
    "incorrect_number": (
        "The card's number is wrong. Add the card again.",
        "カード番号が正しくありません。カードを登録し直してください。",
    ),
    "invalid_number": (
        "The card's number is wrong. Add the card again.",
        "カード番号が正しくありません。カードを登録し直してください。",
    ),
    "incorrect_cvc": (
        "The card's security code is wrong. Add the card again.",
        "カードのセキュリティコードが正しくありません。カードを登録し直してください。",
    ),
    "invalid_account": (
        "The card, or its account, does not work any more. Use another card.",
        "カードまたはその口座は利用できません。別のカードをお使いください。",
    ),
    "card_not_supported": (
        "The card cannot be used for this. Use another card.",
        "このカードはこのお支払いに使えません。別のカードをお使いください。",
    ),
    "currency_not_supported": (
        "The card cannot be charged in this currency. Use another card.",
        "このカードはこの通貨で決済できません。別のカードをお使いください。",
    ),
    "authentication_required": (
        "The bank wants to know that it is you. Pay again and confirm it.",
        "銀行がご本人の確認を求めています。もう一度支払い、確認してください。",
    ),
    "payment_intent_authentication_failure": (
        "The bank could not make sure that it is you. Try again, or use another card.",
        "銀行がご本人を確認できませんでした。もう一度お試しいただくか、別のカードをお使いください。",
    ),
    "issuer_not_available": (
        "The bank could not be reached. Try again later.",
        "銀行に接続できませんでした。後でもう一度お試しください。",
    ),
    "processing_error": (
        "Something went wrong on the way to the bank. Try again later.",
        "銀行との通信中に問題が発生しました。後でもう一度お試しください。",
    ),
    "try_again_later": (
        "The bank asks to try again later.",
        "後でもう一度お試しください（銀行の回答）。",
    ),
    "never_arrived": (
        "The card processor could not be reached for a day, so nothing was charged. Pay again.",
        "決済代行会社に1日接続できず、決済されませんでした。もう一度お支払いください。",
    ),
    "disputed": (
        "Your bank took a payment back.",
        "銀行がお支払いを取り消しました。",
    ),
    "no_card": (
        "There is no card that can be charged. Add one.",
        "請求できるカードがありません。カードを登録してください。",
    ),
}


def said(code: str, text: str, *, language: str = "") -> str:
    """Return why a card was declined in a language, or in the reader's; `text` is what the processor said."""
    words = WORDS.get(code)
    if words is None:
        return text
    return words[1] if (language or get_language() or "").startswith("ja") else words[0]
