"""What is asked and answered about artifacts."""

from typing import Any

from rest_framework import serializers

from marketplace.api.shapes import Text

ASKED_AT_ONCE_MAX = 10_000


class Sha256Field(serializers.RegexField):
    """A SHA-256 in hexadecimal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(r"\A[0-9a-f]{64}\Z", **options)


class ArtifactQuery(serializers.Serializer[Any]):
    project = Text(max_length=32, required=False, help_text="whose it is; default: the token's or the only one")


class ArtifactsAsked(serializers.Serializer[Any]):
    project = Text(max_length=32, required=False, help_text="whose they are; default: the token's or the only one")
    sha256s = serializers.ListField(child=Sha256Field(), max_length=ASKED_AT_ONCE_MAX, help_text="SHA-256, hexadecimal")


class ArtifactsMissingAnswer(serializers.Serializer[Any]):
    missing = serializers.ListField(child=Sha256Field(), help_text="those that the project does not have whole")


class ArtifactAnswer(serializers.Serializer[Any]):
    sha256 = Sha256Field()
    size_bytes = serializers.IntegerField()
    state = serializers.CharField(help_text="uploading or stored")
    offset = serializers.IntegerField(help_text="the next byte that is missing; all of it, where it is stored")
