"""What the till refuses. Nothing here knows of HTTP; amounts are micro-units of the organization's currency."""


class BillingError(Exception):
    """A refusal that somebody can do something about. Nothing was changed."""


class InsufficientFunds(BillingError):
    """There is less money than asked for."""

    def __init__(
        self, *, needed_micros: int, available_micros: int, currency: str, credit_limit_micros: int = 0
    ) -> None:
        super().__init__(f"{needed_micros} micros {currency} are needed, {available_micros} are available")
        self.needed_micros = needed_micros
        self.available_micros = available_micros
        self.currency = currency
        self.credit_limit_micros = credit_limit_micros


class KeyReused(BillingError):
    """The key was used before, for something else."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} was used for something else")
        self.key = key


class HoldClosed(BillingError):
    """The hold has less left than was asked of it: it was posted, voided or expired."""

    def __init__(self, *, key: str, needed_micros: int, left_micros: int) -> None:
        super().__init__(f"hold {key} has {left_micros} micros left, {needed_micros} are needed")
        self.key = key
        self.needed_micros = needed_micros
        self.left_micros = left_micros


class RetroactivePrice(BillingError):
    """A price cannot begin before it is published: somebody may have used the thing at the old one."""


class PriceAlreadyPublished(BillingError):
    """Another price begins at the same moment; prices are never changed."""


class PriceAlreadyHolds(BillingError):
    """A list is in force, or is in a moment: it is not withdrawn any more, another one takes its place."""


class UnitMismatch(BillingError):
    """A meter counts one unit, and its price is for an hour of that unit."""

    def __init__(self, *, expected: str, found: str) -> None:
        super().__init__(f"a price per {found}-hour instead of per {expected}-hour")
        self.expected = expected
        self.found = found


class CurrencyMismatch(BillingError):
    """Money moves between accounts of one currency, and a price is in the currency of who pays it."""

    def __init__(self, *, expected: str, found: str) -> None:
        super().__init__(f"{found} instead of {expected}")
        self.expected = expected
        self.found = found


class BadTaxId(BillingError):
    """The tax id has not the form that its country gives to them."""

    def __init__(self, *, country: str, tax_id: str) -> None:
        super().__init__(f"{tax_id} does not have the form of a tax id of {country}")
        self.country = country
        self.tax_id = tax_id


class NoSeller(BillingError):
    """Nobody has said yet whose invoices these are; see `sellers.name_seller`."""


class NothingToInvoice(BillingError):
    """There is nothing that was not invoiced already, or too little to be paid; it goes on the next invoice."""


class CreditTooLarge(BillingError):
    """A credit note takes back no more than what is left of its invoice, in whole minor units."""

    def __init__(self, *, asked_micros: int, left_micros: int, currency: str) -> None:
        super().__init__(f"{asked_micros} micros {currency} were asked for, {left_micros} are left")
        self.asked_micros = asked_micros
        self.left_micros = left_micros
        self.currency = currency


class BadRateCard(BillingError):
    """Nobody can be paid by a rate card that says this, or another one begins at the same moment."""


class NoDetails(BillingError):
    """Who is paid has to say first who they are on paper: billing details."""


class BadAdjustment(BillingError):
    """An adjustment of a supplier says how much and why."""


class SecondPersonNeeded(BillingError):
    """Whoever proposes does not decide about it."""


class AlreadyDecided(BillingError):
    """Somebody decided about this proposal already."""


class PaymentError(BillingError):
    """A refusal to do with cards. Nothing was charged."""


class NoProcessor(PaymentError):
    """Nobody has told us the processor's keys, so there are no cards here; everything else works."""


class NoCard(PaymentError):
    """The organization has no card that can be charged without its owner being there."""


class BadAmount(PaymentError):
    """The amount cannot be paid with a card: too little, too much, or not in whole minor units."""

    def __init__(self, *, least_micros: int, most_micros: int, currency: str) -> None:
        super().__init__(f"an amount of whole minor units from {least_micros} to {most_micros} micros {currency}")
        self.least_micros = least_micros
        self.most_micros = most_micros
        self.currency = currency


class RefundTooLarge(PaymentError):
    """No more goes back than what is left of the payment, and than what the customer has in cash."""

    def __init__(self, *, asked_micros: int, left_micros: int, currency: str) -> None:
        super().__init__(f"{asked_micros} micros {currency} were asked for, {left_micros} are left")
        self.asked_micros = asked_micros
        self.left_micros = left_micros
        self.currency = currency


class ProcessorRefused(PaymentError):
    """The processor understood and said no; it did nothing. `code` is its word for why."""

    def __init__(self, text: str, *, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class OutcomeUnknown(PaymentError):
    """The processor may or may not have done it: no answer, or an answer that does not say."""


class Stranger(PaymentError):
    """The processor's object is not one of ours, or not what we asked for."""


class BadSignature(PaymentError):
    """A webhook was not signed by the processor, or too long ago."""


class BadTiers(BillingError):
    """Tiers follow each other from zero to no end, without gap or overlap. `problem` is one word for what is wrong."""

    def __init__(self, problem: str, said: str) -> None:
        super().__init__(said)
        self.problem = problem


class BadPrice(BillingError):
    """What a list says of one thing cannot be: `sku` names it, `problem` is one word for what is wrong."""

    def __init__(self, *, sku: str, problem: str, said: str) -> None:
        super().__init__(f"{sku}: {said}")
        self.sku = sku
        self.problem = problem


class PriceListMoved(BillingError):
    """The list is in another state than this needs; somebody may have been faster."""

    def __init__(self, *, state: str, wanted: str) -> None:
        super().__init__(f"a price list that is {state} cannot become {wanted}")
        self.state = state
        self.wanted = wanted


class BadCommitment(BillingError):
    """A commitment promises something possible; `field` names what is not."""

    def __init__(self, field: str, said: str) -> None:
        super().__init__(said)
        self.field = field


class AlreadyCommitted(BillingError):
    """Of one thing an organization has one commitment at a time."""


class AlreadyProposed(BillingError):
    """Somebody proposed another one, which waits for a second person."""


class BadCredit(BillingError):
    """A grant or a limit that makes no sense: it expires before it begins, or is no whole amount."""


class PaymentsPastDue(InsufficientFunds):
    """Nothing new starts: an invoice was left unpaid for too long, or what a bank took back.

    `number` is that of the oldest invoice, empty where there is none.
    """

    def __init__(self, *, owed_micros: int, currency: str, number: str) -> None:
        super().__init__(needed_micros=owed_micros, available_micros=0, currency=currency)
        self.owed_micros = owed_micros
        self.number = number


class BadBankTransfer(BillingError):
    """No bank transfer is like this; `field` names what is wrong."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


class DisputedAlready(BillingError):
    """It is disputed already, and nobody has decided about that yet."""


class RejectedAlready(BillingError):
    """It was disputed, somebody decided that it is right, and it is not decided twice."""


class DisputedTooLate(BillingError):
    """An invoice can be disputed for some days after its issue."""

    def __init__(self, *, days: int) -> None:
        super().__init__(f"it can be disputed within {days} days of its issue")
        self.days = days


class BadOutcome(BillingError):
    """What an outcome says cannot be: its shares are not the whole, or it costs more than its arithmetic says."""


class EscrowClosed(BillingError):
    """Everything that was set aside for this was used or given back already."""

    def __init__(self, resource_id: str) -> None:
        super().__init__(f"nothing is set aside for {resource_id} any more")
        self.resource_id = resource_id


class ReversedAlready(BillingError):
    """Less of an outcome is left than should be given back; `left_micros` is what is."""

    def __init__(self, *, asked_micros: int, left_micros: int) -> None:
        super().__init__(f"{asked_micros} micros should be given back, {left_micros} are left")
        self.asked_micros = asked_micros
        self.left_micros = left_micros


class BadCorrection(BillingError):
    """A span cannot have ended then; `field` names what is wrong."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


class BadUsage(BillingError):
    """Use that was told and cannot be; `place` is which of them it is, from 0."""

    def __init__(self, place: int, text: str) -> None:
        super().__init__(f"use {place}: {text}")
        self.place = place
        self.text = text


class BadDunningTable(BillingError):
    """A table of dunning that would harm somebody too early; `problem` is one word for what is wrong."""

    def __init__(self, problem: str, text: str) -> None:
        super().__init__(text)
        self.problem = problem
