"""Volumes: make, look, attach, detach, copy, grow, delete and restore."""

from collections.abc import Callable
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, offers, volumes
from marketplace.access import Actor
from marketplace.api import answers, shapes, volume_shapes
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import KEY_ACCEPTED, KEY_REQUIRED, actor_of, answered_once, naming
from marketplace.models import Project
from provisioning.models import Volume
from provisioning.volumes import Use

ANSWER = {200: volume_shapes.VolumeAnswer, shapes.REFUSED: shapes.Problem}


class VolumeList(APIView):
    """All volumes that the token may see, and making a new one."""

    @extend_schema(
        operation_id="list_volumes",
        parameters=[volume_shapes.VolumeQuery, PageQuery],
        responses={200: shapes.page_of(volume_shapes.VolumeAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List volumes, newest first; those that are deleted for good only when asked for by state."""
        actor, query = actor_of(request), queried(request, volume_shapes.VolumeQuery, PageQuery)
        rows = access.volumes(actor)
        if "project" in query:
            with naming("project"):
                rows = rows.filter(project=access.project_for(actor, query["project"], verb="volume.view"))
        rows = rows.filter(state=query["state"]) if "state" in query else rows.exclude(state=Volume.State.DELETED)
        if "name" in query:
            rows = rows.filter(name=query["name"])
        return paged(rows, query, lambda found: [answers.volume(row) for row in found])

    @extend_schema(
        operation_id="create_volume",
        parameters=[KEY_REQUIRED],
        request=volume_shapes.CreateVolume,
        responses={202: volume_shapes.VolumeAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Make a volume. It is charged while it exists, from when its node says that it is there."""
        actor, asked = actor_of(request), checked(volume_shapes.CreateVolume, request.data)
        queried(request)
        with naming("project"):
            project = access.project_for(actor, asked.get("project"), verb="volume.change")

        def effect() -> tuple[int, Any]:
            volume = volumes.create(actor=actor, project=project, order=_order(project, asked), at=timezone.now())
            return 202, _shown(actor, volume)

        order = {**asked, "project": project.public_id}
        return answered_once(request, organization=project.organization, order=order, effect=effect)


def _order(project: Project, asked: dict[str, Any]) -> volumes.Order:
    with naming("site"):
        site = offers.site_for(asked["site"])
    source = offer = None
    if "source" in asked:
        with naming("source"):
            source = access.volume_of(project, asked["source"])
    if "offer" in asked:
        with naming("offer"):
            offer = offers.offer_for(asked["offer"])
    return volumes.Order(site=site, name=asked["name"], size_gib=asked["size_gib"], source=source, offer=offer)


def _shown(actor: Actor, volume: Volume) -> answers.Answer:
    """Return a volume as it is now, with all that its answer needs."""
    return answers.volume(access.volume_for(actor, volume.public_id, verb="volume.change"))


class VolumeDetail(APIView):
    """One volume."""

    @extend_schema(operation_id="show_volume", responses=ANSWER)
    def get(self, request: Request, volume_id: str) -> Response:
        """Show a volume with its size, what is used of it, its price and what may be done."""
        queried(request)
        return Response(answers.volume(access.volume_for(actor_of(request), volume_id, verb="volume.view")))

    @extend_schema(operation_id="change_volume", request=volume_shapes.ChangeVolume, responses=ANSWER)
    def patch(self, request: Request, volume_id: str) -> Response:
        """Give a volume another name, or make it bigger at today's price; it never shrinks."""
        queried(request)
        actor, asked = actor_of(request), checked(volume_shapes.ChangeVolume, request.data)
        volume = access.volume_for(actor, volume_id, verb="volume.change")
        volumes.change(
            actor=actor, volume=volume, name=asked.get("name"), size_gib=asked.get("size_gib"), at=timezone.now()
        )
        return Response(_shown(actor, volume))

    @extend_schema(
        operation_id="delete_volume",
        responses={202: volume_shapes.VolumeAnswer, shapes.REFUSED: shapes.Problem},
    )
    def delete(self, request: Request, volume_id: str) -> Response:
        """Delete a volume: charges end now. Until `delete_after` it can be restored; then it is removed for good."""
        queried(request)
        actor = actor_of(request)
        volume = access.volume_for(actor, volume_id, verb="volume.change")
        volumes.delete(actor=actor, volume=volume, at=timezone.now())
        return Response(_shown(actor, volume), status=202)


class _VolumeVerb(APIView):
    """A verb on one volume; those below differ in what they do."""

    def answer(
        self,
        request: Request,
        volume_id: str,
        act: Callable[[Actor, Volume, dict[str, Any]], Volume],
        *,
        shape: type[shapes.Shape] | None = None,
        required: bool = False,
    ) -> Response:
        queried(request)
        actor, asked = actor_of(request), checked(shape, request.data) if shape else {}
        volume = access.volume_for(actor, volume_id, verb="volume.change")

        def effect() -> tuple[int, Any]:
            return 202, _shown(actor, act(actor, volume, asked))

        organization = volume.project.organization
        return answered_once(request, organization=organization, order=asked, effect=effect, required=required)


class VolumeRestore(_VolumeVerb):
    @extend_schema(
        operation_id="restore_volume",
        request=None,
        parameters=[KEY_ACCEPTED],
        responses={202: volume_shapes.VolumeAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, volume_id: str) -> Response:
        """Take a deletion back, as if it had never been asked for: the time since then is charged too."""

        def act(actor: Actor, volume: Volume, _asked: dict[str, Any]) -> Volume:
            volumes.restore(actor=actor, volume=volume, at=timezone.now())
            return volume

        return self.answer(request, volume_id, act)


class VolumeSnapshot(_VolumeVerb):
    @extend_schema(
        operation_id="snapshot_volume",
        request=volume_shapes.VolumeName,
        parameters=[KEY_REQUIRED],
        responses={202: volume_shapes.VolumeAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, volume_id: str) -> Response:
        """Copy a volume as it is now into one that stays as it is; it is charged like any other."""

        def act(actor: Actor, volume: Volume, asked: dict[str, Any]) -> Volume:
            return volumes.snapshot(actor=actor, volume=volume, name=asked["name"], at=timezone.now())

        return self.answer(request, volume_id, act, shape=volume_shapes.VolumeName, required=True)


class VolumeAttach(_VolumeVerb):
    @extend_schema(
        operation_id="attach_volume",
        request=volume_shapes.AttachVolume,
        parameters=[KEY_ACCEPTED],
        responses={202: volume_shapes.VolumeAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, volume_id: str) -> Response:
        """Attach a volume to an instance that is stopped; its next start finds it there."""

        def act(actor: Actor, volume: Volume, asked: dict[str, Any]) -> Volume:
            with naming("instance"):
                instance = access.instance_for(actor, asked["instance"], verb="instance.change")
            use = Use(volume, asked["path"], asked["read_only"])
            volumes.attach(actor=actor, use=use, instance=instance, at=timezone.now())
            return volume

        return self.answer(request, volume_id, act, shape=volume_shapes.AttachVolume)


class VolumeDetach(_VolumeVerb):
    @extend_schema(
        operation_id="detach_volume",
        request=None,
        parameters=[KEY_ACCEPTED],
        responses={202: volume_shapes.VolumeAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request, volume_id: str) -> Response:
        """Take a volume from an instance that is stopped. Detaching what is not attached changes nothing."""

        def act(actor: Actor, volume: Volume, _asked: dict[str, Any]) -> Volume:
            volumes.detach(actor=actor, volume=volume, at=timezone.now())
            return volume

        return self.answer(request, volume_id, act)
