"""The shapes of answers about organizations, projects, people, tokens, keys, and the record of changes."""

from typing import Any

from rest_framework import serializers

from marketplace.api.shapes import NamedRef, OrganizationAnswer
from marketplace.models import Role


class ProjectAnswer(NamedRef):
    organization = serializers.CharField()
    suspended = serializers.BooleanField()


class MemberAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    email = serializers.CharField()
    name = serializers.CharField()
    role = serializers.ChoiceField(choices=Role.choices)
    created_at = serializers.DateTimeField()


class InvitationAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    email = serializers.CharField()
    role = serializers.ChoiceField(choices=Role.choices)
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField()
    accepted_at = serializers.DateTimeField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)


class NewInvitationAnswer(InvitationAnswer):
    link = serializers.CharField(help_text="shown only now")


class TokenAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    name = serializers.CharField()
    prefix = serializers.CharField()
    owner = serializers.CharField()
    project = serializers.CharField(allow_null=True)
    scopes = serializers.ListField(child=serializers.CharField())
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField()
    last_used_at = serializers.DateTimeField(allow_null=True)


class NewTokenAnswer(TokenAnswer):
    secret = serializers.CharField(help_text="shown only now")


class SshKeyAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    name = serializers.CharField()
    project = serializers.CharField()
    fingerprint = serializers.CharField()
    public_key = serializers.CharField()
    created_at = serializers.DateTimeField()


class AuditAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    at = serializers.DateTimeField()
    actor = serializers.CharField()
    token = serializers.CharField(allow_null=True)
    verb = serializers.CharField()
    subject = serializers.CharField()
    before = serializers.DictField(allow_null=True)
    after = serializers.DictField(allow_null=True)
    request_id = serializers.CharField()


class PersonAnswer(serializers.Serializer[Any]):
    email = serializers.CharField()
    name = serializers.CharField()


class MyTokenAnswer(NamedRef):
    scopes = serializers.ListField(child=serializers.CharField())
    expires_at = serializers.DateTimeField()


class MyProjectAnswer(NamedRef):
    role = serializers.CharField()
    suspended = serializers.BooleanField()


class MeAnswer(serializers.Serializer[Any]):
    user = PersonAnswer()
    organization = OrganizationAnswer()
    token = MyTokenAnswer()
    projects = MyProjectAnswer(many=True)
