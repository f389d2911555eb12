"""The shapes of receipts and of the keys that sign them. What a receipt itself holds is in docs/receipts.md."""

from typing import Any

from rest_framework import serializers

from marketplace.models import SigningKey


class ReceiptQuery(serializers.Serializer[Any]):
    claim = serializers.CharField(required=False, max_length=32, help_text="only those of this claim")


class ChainQuery(serializers.Serializer[Any]):
    after = serializers.IntegerField(
        min_value=0, max_value=2**53, default=0, help_text="the number after which to begin; 0: from the first"
    )
    limit = serializers.IntegerField(min_value=1, max_value=1000, default=200, help_text="how many lines at most")


class ReceiptAnswer(serializers.Serializer[Any]):
    """What a receipt is about; the signed document has an address of its own."""

    id = serializers.CharField()
    organization = serializers.CharField()
    project = serializers.CharField(allow_null=True)
    sequence = serializers.IntegerField(help_text="its number in the organization's chain, from 1")
    digest = serializers.CharField(help_text="SHA-256 of the body's canonical form, in hexadecimal")
    previous = serializers.CharField(allow_null=True, help_text="the digest of the receipt before it")
    claim = serializers.CharField()
    event = serializers.CharField(help_text="how the claim ended: settled, failed, rejected, voided, reversed")
    amount = serializers.CharField(help_text="what was charged in the end")
    currency = serializers.CharField()
    issued_at = serializers.DateTimeField()


class PlatformKey(serializers.Serializer[Any]):
    id = serializers.CharField(help_text="key_ and the first 32 hexadecimal digits of the key's SHA-256")
    algorithm = serializers.CharField()
    public_key = serializers.CharField(help_text="32 bytes in hexadecimal")
    state = serializers.ChoiceField(choices=SigningKey.State.choices)
    since = serializers.CharField()
    until = serializers.CharField(allow_null=True, help_text="after which it signs nothing any more")
    revoked_at = serializers.CharField(allow_null=True, help_text="nothing that it signed counts")
    revoked_because = serializers.CharField(allow_null=True)


class RevokedNodeKey(serializers.Serializer[Any]):
    id = serializers.CharField()
    node = serializers.CharField()
    public_key = serializers.CharField()
    revoked_at = serializers.CharField()
    revoked_because = serializers.CharField()


class KeysAnswer(serializers.Serializer[Any]):
    issuer = serializers.CharField()
    as_of = serializers.CharField()
    keys = PlatformKey(many=True)
    revoked_node_keys = RevokedNodeKey(many=True)
