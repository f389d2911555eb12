"""The shapes of service levels."""

from typing import Any

from rest_framework import serializers

from marketplace.api.shapes import NamedRef


class TierAnswer(serializers.Serializer[Any]):
    below_ppm = serializers.IntegerField(help_text="millionths of the time")
    credit_bps = serializers.IntegerField(help_text="hundredths of a percent of what was paid")


class ServiceTermsAnswer(serializers.Serializer[Any]):
    version = serializers.CharField()
    degraded_weight_bps = serializers.IntegerField()
    degraded_s = serializers.IntegerField()
    min_incident_s = serializers.IntegerField()
    failed_counts_for_s = serializers.IntegerField()
    tiers = TierAnswer(many=True)


class VerdictAnswer(serializers.Serializer[Any]):
    """How available an instance was in a month. Money is decimal strings."""

    id = serializers.CharField(help_text="empty while the month runs")
    instance = NamedRef()
    month = serializers.CharField(help_text="in UTC, such as 2026-11")
    is_final = serializers.BooleanField(help_text="false: how it would be if the month ended now")
    terms_version = serializers.CharField()
    up_ms = serializers.IntegerField()
    down_ms = serializers.IntegerField()
    degraded_ms = serializers.IntegerField(help_text="a part of up_ms")
    availability_ppm = serializers.IntegerField()
    paid = serializers.CharField()
    credit_bps = serializers.IntegerField()
    credit = serializers.CharField()
    currency = serializers.CharField()


class EvidenceAnswer(serializers.Serializer[Any]):
    """All that a verdict follows from: stretches of time as [from, to)."""

    begins = serializers.DateTimeField()
    ends = serializers.DateTimeField()
    expected = serializers.ListField(child=serializers.ListField(child=serializers.DateTimeField()))
    down = serializers.ListField(child=serializers.ListField(child=serializers.DateTimeField()))
    measured = serializers.ListField(child=serializers.ListField(child=serializers.DateTimeField()))
    noted = serializers.ListField(child=serializers.DateTimeField())
    paid_micros = serializers.IntegerField()
    returned_micros = serializers.IntegerField(help_text="given back for interruptions already")


class ProvedVerdictAnswer(VerdictAnswer):
    terms = ServiceTermsAnswer()
    evidence = EvidenceAnswer()


class InstanceSlaAnswer(serializers.Serializer[Any]):
    """The month that runs first, where something ran in it; then those that are over, newest first."""

    data = ProvedVerdictAnswer(many=True)  # type: ignore[assignment]
