"""The shapes of orders: what every door that rents takes."""

from django.conf import settings
from rest_framework import serializers

from marketplace.api.shapes import Count, Shape, Text
from marketplace.work_orders import COUNTERS_MAX
from provisioning.models import Instance

LEASE_MINUTES = {kind: seconds / 60 for kind, seconds in settings.ASSIGNMENT_LEASE_S.items()}


class VolumeUse(Shape):
    volume = Text(max_length=63, help_text="its id or name")
    path = Text(max_length=200, help_text="where the instance finds it, such as /data")
    read_only = serializers.BooleanField(  # type: ignore[assignment]
        required=False, default=False, help_text="for offers whose runtime is podman"
    )


class PlacementWish(Shape):
    strategy = serializers.ChoiceField(
        choices=["pack", "spread"], default="pack", help_text="pack: as near as can be; spread: evenly over the level"
    )
    level = serializers.ChoiceField(
        choices=["nvlink", "node", "rack", "fabric", "site"],
        required=False,
        help_text="pack: the widest that replicas may share; spread: what they are dealt out over (node, rack, fabric)",
    )
    required = serializers.BooleanField(  # type: ignore[assignment]  # a field of ours, not the serializer's own flag
        default=False, help_text="refuse or wait where the level or skew cannot be had"
    )
    max_skew = Count(min_value=1, max_value=10_000, default=1, help_text="spread: the most that counts may differ")


class ReadCounters(Shape):
    port = Count(min_value=1, max_value=65_535, help_text="where the command shows them, in Prometheus text format")
    path = Text(max_length=200, required=False, default="/metrics")
    names = serializers.ListField(child=Text(max_length=100), min_length=1, max_length=COUNTERS_MAX)


class RentInstance(Shape):
    offer = Text(max_length=64, help_text="an offer's id or slug")
    project = Text(max_length=32, required=False, help_text="default: the token's or the only one")
    name = Text(max_length=63, required=False, help_text="default: made from the GPU model")
    replicas = Count(min_value=1, max_value=10_000, default=1)
    gpus = Count(min_value=1, max_value=1024, default=1, help_text="GPUs of each replica")
    command = serializers.ListField(
        child=Text(max_length=65_536, allow_blank=True, trim_whitespace=False),
        required=False,
        default=list,
        max_length=1000,
        help_text="the program and its arguments; with an image it may be left out, and the image's own command runs",
    )
    image = Text(
        max_length=500,
        required=False,
        help_text="for offers whose runtime is podman: registry, name, and a tag or digest",
    )
    ports = serializers.ListField(
        child=Count(min_value=1, max_value=65_535),
        required=False,
        max_length=20,
        help_text="TCP ports inside the image that are to be published",
    )
    lease = serializers.ChoiceField(
        choices=Instance.Lease.choices,
        required=False,
        help_text="without contact to us: strict ends after {strict:g} minutes and may be placed anew soon, sticky "
        "goes on for {sticky:g} minutes".format_map(LEASE_MINUTES),
    )
    on_failure = serializers.ChoiceField(
        choices=Instance.OnFailure.choices, required=False, help_text="when its node or a GPU fails"
    )
    attach = serializers.ChoiceField(
        choices=Instance.Attach.choices, required=False, help_text="whether it runs inside a reservation of the project"
    )
    reservation = Text(max_length=32, required=False, help_text="run inside this reservation or not at all")
    env = serializers.DictField(child=Text(max_length=65_536, allow_blank=True, trim_whitespace=False), required=False)
    placement = PlacementWish(required=False)
    volumes = serializers.ListField(child=VolumeUse(), required=False, max_length=16)
    counters = ReadCounters(required=False, help_text="what its node reads from it each 15 seconds")


class LaunchInstance(RentInstance):
    contract = Text(
        max_length=32,
        required=False,
        help_text="a version that you agreed to, ctv_…, whose share of revenue pays for its hours",
    )
