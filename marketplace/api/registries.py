"""Registries of private images: who may pull for a project. No answer holds a password."""

from typing import Any

from django.utils import timezone
from django.utils.crypto import salted_hmac
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, registries
from marketplace.api import answers, shapes
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.registry_shapes import AddRegistry, RegistryAnswer
from marketplace.api.views import KEY_ACCEPTED, actor_of, answered_once, naming

FINGERPRINT = "registry password"


class RegistryList(APIView):
    @extend_schema(
        operation_id="list_registries",
        parameters=[shapes.ProjectQuery, PageQuery],
        responses={200: shapes.page_of(RegistryAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the registries that a project can pull private images from."""
        query = queried(request, shapes.ProjectQuery, PageQuery)
        with naming("project"):
            project = access.project_for(actor_of(request), query.get("project"), verb="registry.view")
        return paged(access.registries(project), query, lambda found: [answers.registry(row) for row in found])

    @extend_schema(
        operation_id="add_registry",
        parameters=[KEY_ACCEPTED],
        request=AddRegistry,
        responses={201: RegistryAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Let a project's nodes pull from a registry. The password is sealed and never shown again."""
        queried(request)
        actor, asked = actor_of(request), checked(AddRegistry, request.data)
        with naming("project"):
            project = access.project_for(actor, asked.pop("project", None), verb="registry.change")

        def effect() -> tuple[int, Any]:
            row = registries.add(actor=actor, project=project, **asked, at=timezone.now())
            return 201, answers.registry(row)

        # The order is remembered as a hash: with a key of ours in it, nobody can try passwords against that.
        secret = salted_hmac(FINGERPRINT, asked["password"], algorithm="sha256").hexdigest()
        order = {**asked, "password": secret, "project": project.public_id}
        return answered_once(request, organization=project.organization, order=order, effect=effect, required=False)


class RegistryDetail(APIView):
    @extend_schema(operation_id="remove_registry", responses={204: None, shapes.REFUSED: shapes.Problem})
    def delete(self, request: Request, registry_id: str) -> Response:
        """Forget a way into a registry."""
        queried(request)
        actor = actor_of(request)
        row = access.registry_for(actor, registry_id, verb="registry.change")
        registries.remove(actor=actor, credential=row)
        return Response(status=204)
