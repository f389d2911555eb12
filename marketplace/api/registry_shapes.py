"""The shapes of registries: what goes in, and what comes out without the password."""

from typing import Any

from rest_framework import serializers

from marketplace.api.shapes import Shape, Text


class AddRegistry(Shape):
    host = Text(max_length=255, help_text="the registry as images name it, such as registry.example.com")
    username = Text(max_length=255)
    password = Text(max_length=8192, trim_whitespace=False, help_text="a password or token; never shown again")
    project = Text(max_length=32, required=False)


class RegistryAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    project = serializers.CharField()
    host = serializers.CharField()
    username = serializers.CharField()
    created_at = serializers.DateTimeField()
    handed_out_at = serializers.DateTimeField(allow_null=True, help_text="when a node last asked for it, to pull")
