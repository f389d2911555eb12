"""The shapes of requests and answers about contracts, claims and their disputes."""

from typing import Any

from rest_framework import serializers

from marketplace.api.price_shapes import Amount
from marketplace.api.shapes import Count, NamedRef, Shape, Text
from marketplace.models import ClaimDispute, ClaimState, Contract, ContractVersion, Side, Verdict

SHA256 = r"\A[0-9a-f]{64}\Z"


class ContractQuery(serializers.Serializer[Any]):
    scope = serializers.ChoiceField(
        choices=["catalogue", "accepted", "sold"], required=False, help_text="default: all that you may read"
    )
    kind = serializers.ChoiceField(choices=Contract.Kind.choices, required=False)


class DraftContract(Shape):
    title = Text(max_length=100)
    terms = serializers.JSONField(help_text="whole terms of the closed schema gpumarket.terms/3")
    buyer = Text(max_length=32, required=False, help_text="the one organization that it is for; default: the catalogue")
    organization = Text(max_length=32, required=False, help_text="which sells; default: your own")


class DraftVersion(Shape):
    terms = serializers.JSONField(help_text="whole terms of the closed schema gpumarket.terms/3")


class AcceptContract(Shape):
    sha256 = serializers.RegexField(SHA256, max_length=64, help_text="of the version's text, as you have read it")
    check_image = Text(max_length=500, required=False, default="", allow_blank=True, help_text="of the command below")
    check_command = serializers.ListField(
        child=Text(max_length=4000, allow_blank=True, trim_whitespace=False),
        required=False,
        default=list,
        max_length=100,
        help_text="judges each result, where the terms leave that to you: exit code 0 passes it, 1 does not",
    )
    third_parties = serializers.ListField(
        child=serializers.RegexField(SHA256, max_length=64),
        required=False,
        default=list,
        max_length=2,
        help_text="public keys of the third parties that verify or decide by the terms, as you have them from these",
    )
    organization = Text(max_length=32, required=False, help_text="which agrees; default: your own")


class LeaveContract(Shape):
    organization = Text(max_length=32, required=False, help_text="which ends it; default: your own")


class AcceptanceAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    organization = NamedRef()
    side = serializers.ChoiceField(choices=Side.choices)
    sha256 = serializers.CharField()
    check_image = serializers.CharField()
    check_command = serializers.ListField(child=serializers.CharField())
    accepted_by = serializers.CharField()
    at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True, help_text="when you ended it; nothing new is ordered since")


class ContractVersionAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    contract = serializers.CharField()
    number = serializers.IntegerField()
    title = serializers.CharField()
    kind = serializers.ChoiceField(choices=Contract.Kind.choices)
    seller = NamedRef()
    buyer = NamedRef(allow_null=True, help_text="for whom alone it is; null: it is in the catalogue")
    state = serializers.ChoiceField(choices=ContractVersion.State.choices)
    terms = serializers.JSONField()
    text = serializers.CharField(help_text="the terms as canonical JSON (RFC 8785): what is hashed")
    sha256 = serializers.CharField()
    most_per_subject = Amount(help_text="the most that one task or subject can cost")
    proposed_by = serializers.ChoiceField(choices=Side.choices)
    created_at = serializers.DateTimeField()
    offered_at = serializers.DateTimeField(allow_null=True)
    withdrawn_at = serializers.DateTimeField(allow_null=True)
    accepted = AcceptanceAnswer(allow_null=True, help_text="your own acceptance, if you agreed")


class ClaimQuery(serializers.Serializer[Any]):
    side = serializers.ChoiceField(
        choices=[Side.BUYER, Side.SELLER], default=Side.BUYER, help_text="what you buy, or what you sell"
    )
    state = serializers.ChoiceField(choices=ClaimState.choices, required=False)
    job = serializers.CharField(max_length=32, required=False)
    version = serializers.CharField(max_length=32, required=False)
    project = serializers.CharField(max_length=32, required=False)


class FileClaim(Shape):
    version = Text(max_length=32, help_text="a version that you sell and the customer accepted")
    project = Text(max_length=32, help_text="of the customer")
    subject = Text(max_length=200, help_text="what is claimed; the same subject is paid once")
    units = Count(min_value=1, max_value=10**12, default=1)
    evidence = serializers.DictField(required=False, default=dict, help_text="digests and figures that it rests on")


class ClaimVerdictAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    run = serializers.IntegerField()
    verifier = serializers.ChoiceField(choices=Verdict.Verifier.choices)
    verifier_version = serializers.CharField()
    result = serializers.ChoiceField(choices=Verdict.Result.choices)
    detail = serializers.CharField()
    inputs = serializers.DictField()
    by = serializers.CharField()
    signature = serializers.CharField()
    at = serializers.DateTimeField()


class NoteAnswer(serializers.Serializer[Any]):
    side = serializers.ChoiceField(choices=Side.choices)
    by = serializers.CharField()
    text = serializers.CharField()
    at = serializers.DateTimeField()


class ClaimDisputeAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    claim = serializers.CharField()
    state = serializers.ChoiceField(choices=ClaimDispute.State.choices)
    opened_by = serializers.ChoiceField(choices=Side.choices)
    reason = serializers.ChoiceField(choices=ClaimDispute.Reason.choices)
    text = serializers.CharField()
    opened_at = serializers.DateTimeField()
    decide_by = serializers.DateTimeField(help_text="after that the rule of the terms decides")
    due_bps = serializers.IntegerField(allow_null=True, help_text="what of the price is to be paid, once decided")
    decided_by = serializers.CharField()
    decided_at = serializers.DateTimeField(allow_null=True)
    note = serializers.CharField()
    notes = NoteAnswer(many=True)


class ClaimAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    version = serializers.CharField()
    title = serializers.CharField()
    seller = NamedRef()
    organization = NamedRef()
    project = NamedRef()
    job = serializers.CharField(allow_null=True)
    task = serializers.IntegerField(allow_null=True)
    subject = serializers.CharField()
    units = serializers.IntegerField()
    price_bps = serializers.IntegerField(help_text="what being late leaves of the price")
    amount = Amount(help_text="its price by the terms")
    most = Amount(help_text="the most that it could cost")
    paid = Amount()
    given_back = Amount()
    state = serializers.ChoiceField(choices=ClaimState.choices)
    state_since = serializers.DateTimeField()
    message = serializers.CharField()
    run = serializers.IntegerField(help_text="1, and 1 more for each retry")
    evidence = serializers.DictField()
    evidence_sha256 = serializers.CharField()
    claimed_at = serializers.DateTimeField()
    due_at = serializers.DateTimeField(allow_null=True, help_text="when a rule of the terms acts next")
    settled_at = serializers.DateTimeField(allow_null=True)
    clawback_until = serializers.DateTimeField(allow_null=True)
    closed_at = serializers.DateTimeField(allow_null=True)


class ClaimWithProof(ClaimAnswer):
    verdicts = ClaimVerdictAnswer(many=True)
    disputes = ClaimDisputeAnswer(many=True)
    to_sign = serializers.DictField(
        allow_null=True,
        help_text="what a third party signs, with `result` filled in; null where none judges, and until its units are "
        "counted",
    )


class ClaimEventAnswer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    old_state = serializers.CharField()
    new_state = serializers.CharField()
    message = serializers.CharField()
    by = serializers.CharField()


class Because(Shape):
    reason = Text(max_length=2000, help_text="why; both sides read it")


class OpenClaimDispute(Shape):
    reason = serializers.ChoiceField(choices=ClaimDispute.Reason.choices)
    text = Text(max_length=2000, help_text="what is wrong; both sides read it")


class SayInDispute(Shape):
    text = Text(max_length=2000)


class SignedVerdict(Shape):
    result = serializers.ChoiceField(choices=Verdict.Result.choices)
    run = Count(min_value=1, max_value=1000)
    detail = Text(max_length=2000, required=False, default="", allow_blank=True)
    signature = serializers.RegexField(r"\A[0-9a-f]{128}\Z", max_length=128, help_text="Ed25519, of the text to sign")


class SignedDecision(Shape):
    due_bps = Count(min_value=0, max_value=10_000, help_text="what of the price is to be paid, in basis points")
    note = Text(max_length=2000, required=False, default="", allow_blank=True)
    signature = serializers.RegexField(r"\A[0-9a-f]{128}\Z", max_length=128, help_text="Ed25519, of the text to sign")
