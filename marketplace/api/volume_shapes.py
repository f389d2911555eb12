"""The shapes of requests and answers about volumes."""

from typing import Any

from rest_framework import serializers

from marketplace.api.price_shapes import ListedPrice
from marketplace.api.shapes import ActionAnswer, Count, NamedRef, Shape, SiteAnswer, SiteRef, Text
from provisioning.models import Site, Volume
from provisioning.volumes import SIZE_GIB_MAX


class CreateVolume(Shape):
    site = Text(max_length=64, help_text="a site's id or slug")
    project = Text(max_length=32, required=False, help_text="default: the token's or the only one")
    name = Text(max_length=63)
    size_gib = Count(min_value=1, max_value=SIZE_GIB_MAX)
    source = Text(  # type: ignore[assignment]
        max_length=63, required=False, help_text="id or name of a volume to begin as a copy of"
    )
    offer = Text(max_length=64, required=False, help_text="in a site with local disks: lie on a node of this offer")


class ChangeVolume(Shape):
    name = Text(max_length=63, required=False)
    size_gib = Count(min_value=1, max_value=SIZE_GIB_MAX, required=False, help_text="only ever more")


class VolumeName(Shape):
    name = Text(max_length=63)


class AttachVolume(Shape):
    instance = Text(max_length=32)
    path = Text(max_length=200, help_text="where the instance finds it, such as /data")
    read_only = serializers.BooleanField(  # type: ignore[assignment]
        required=False, default=False, help_text="for offers whose runtime is podman"
    )


class VolumeQuery(serializers.Serializer[Any]):
    project = serializers.CharField(max_length=32, required=False)
    state = serializers.ChoiceField(choices=Volume.State.choices, required=False)
    name = serializers.CharField(max_length=63, required=False)


class AttachmentAnswer(serializers.Serializer[Any]):
    instance = NamedRef()
    path = serializers.CharField()
    read_only = serializers.BooleanField()  # type: ignore[assignment]
    attached_at = serializers.DateTimeField()


class VolumeActionsAnswer(serializers.Serializer[Any]):
    attach = ActionAnswer()
    detach = ActionAnswer()
    resize = ActionAnswer()
    snapshot = ActionAnswer()
    delete = ActionAnswer()
    restore = ActionAnswer()
    rename = ActionAnswer()


class VolumeCostAnswer(serializers.Serializer[Any]):
    billing = serializers.ChoiceField(choices=["not_started", "running", "paused", "ended"])
    currency = serializers.CharField()
    per_gib_hour = serializers.CharField()
    per_hour = serializers.CharField()
    per_month = serializers.CharField(help_text="730 hours")


class VolumeAnswer(NamedRef):
    project = NamedRef()
    site = SiteRef()
    kind = serializers.ChoiceField(choices=Site.VolumeKind.choices)
    node = serializers.CharField(help_text="keeps it; a local volume can be used there alone")
    offer = serializers.CharField(allow_null=True, help_text="a local volume's: whose instances can use it")
    size_gib = serializers.IntegerField()
    used_bytes = serializers.IntegerField(allow_null=True, help_text="null until it was measured")
    used_percent = serializers.IntegerField(allow_null=True)
    measured_at = serializers.DateTimeField(allow_null=True)
    is_snapshot = serializers.BooleanField()
    source = NamedRef(allow_null=True)  # type: ignore[assignment]
    state = serializers.ChoiceField(choices=Volume.State.choices)
    health = serializers.ChoiceField(choices=Volume.Health.choices)
    message = serializers.CharField()
    attachment = AttachmentAnswer(allow_null=True)
    cost = VolumeCostAnswer()
    actions = VolumeActionsAnswer()
    created_at = serializers.DateTimeField()
    ready_at = serializers.DateTimeField(allow_null=True)
    unpaid_since = serializers.DateTimeField(allow_null=True)
    deleted_when_unpaid = serializers.DateTimeField(
        allow_null=True, help_text="when its deletion is asked for unless credit is added"
    )
    delete_after = serializers.DateTimeField(allow_null=True, help_text="until then a deletion can be taken back")
    deleted_at = serializers.DateTimeField(allow_null=True)


class SiteWithStorageAnswer(SiteAnswer):
    storage = ListedPrice(allow_null=True, help_text="of a volume's GiB-hour; null where volumes are not for sale")
