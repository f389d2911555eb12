"""Where instances were placed and why, and the policies that say where they may be."""

from typing import Any

from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, policies
from marketplace.api import shapes
from marketplace.api.pages import PageQuery, paged, queried
from marketplace.api.views import actor_of
from marketplace.errors import BadOrder
from marketplace.models import Organization, Project
from provisioning import decisions
from provisioning.models import PlacementDecision, Policy

IF_MATCH = OpenApiParameter(
    "If-Match", OpenApiTypes.STR, OpenApiParameter.HEADER, description="the version that you read, as in ETag"
)


class RejectedAnswer(serializers.Serializer[Any]):
    rule = serializers.ChoiceField(choices=list(decisions.RULES))
    nodes = serializers.IntegerField(help_text="nodes for which this was the first rule that kept them out")
    reason = serializers.CharField()


class PlacementAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    instance = serializers.CharField(allow_null=True, help_text="null: the launch was refused and left none")
    project = serializers.CharField()
    offer = serializers.CharField()
    run = serializers.IntegerField()
    at = serializers.DateTimeField()
    outcome = serializers.ChoiceField(choices=PlacementDecision.Outcome.choices)
    times = serializers.IntegerField(help_text="how often it was refused alike; a waiting start asks again and again")
    request = serializers.DictField()
    level = serializers.CharField(allow_null=True, help_text="the lowest level that all replicas share")
    nodes = serializers.IntegerField(help_text="on how many nodes; the instance says which")
    candidates = serializers.IntegerField(help_text="nodes that could take a replica")
    rejected = RejectedAnswer(many=True)
    most = serializers.DictField(help_text="the most replicas that one rack, fabric, ... had room for")
    relaxation = serializers.DictField(allow_null=True, help_text="the cheapest change with which it would have fit")
    advice = serializers.CharField(allow_blank=True)
    policy_digest = serializers.CharField(allow_blank=True, help_text="SHA-256 of the policies that applied")


class PolicyAnswer(serializers.Serializer[Any]):
    scope = serializers.ChoiceField(choices=["organization", "project"])
    id = serializers.CharField()
    document = serializers.DictField()
    version = serializers.IntegerField()
    updated_at = serializers.DateTimeField(allow_null=True)


class ReplacePolicy(serializers.Serializer[Any]):
    """Checked by the policy's own rules, which name the field: this only describes it."""

    countries = serializers.DictField(required=False, help_text="{allow: [NO], deny: [US]}: where the site stands")
    jurisdictions = serializers.DictField(required=False, help_text="the law that the site's operator answers to")
    certifications = serializers.ListField(required=False, child=serializers.CharField(), help_text="all of them")
    near = serializers.DictField(required=False, help_text="{latitude, longitude, within_ms}: there and back in fibre")
    power_sources = serializers.DictField(required=False)
    suppliers = serializers.DictField(required=False, help_text="ids of suppliers, as offers name them")
    no_shared_host = serializers.BooleanField(required=False, help_text="only nodes that nobody else is on")


def placement(row: PlacementDecision) -> dict[str, Any]:
    """Return a decision as the API shows it: counts of nodes, and never whose they are."""
    return {
        "id": row.public_id,
        "instance": row.instance.public_id if row.instance else None,
        "project": row.project.public_id,
        "offer": row.offer.public_id,
        "run": row.run,
        "at": row.at,
        "outcome": row.outcome,
        "times": row.times,
        "request": row.request,
        "level": row.level or None,
        "nodes": row.nodes,
        "candidates": row.candidates,
        "rejected": [
            {"rule": rule, "nodes": row.rejected[rule], "reason": str(words)}
            for rule, words in decisions.RULES.items()
            if rule in row.rejected
        ],
        "most": row.most,
        "relaxation": row.relaxation or None,
        "advice": decisions.advice(row.relaxation),
        "policy_digest": row.policy_digest,
    }


class PlacementDetail(APIView):
    """One decision of placement."""

    @extend_schema(operation_id="show_placement", responses={200: PlacementAnswer, shapes.REFUSED: shapes.Problem})
    def get(self, request: Request, placement_id: str) -> Response:
        """Say where something was placed or why it was not, with what was looked at."""
        queried(request)
        return Response(placement(access.placement_for(actor_of(request), placement_id, verb="instance.view")))


class InstancePlacements(APIView):
    """The decisions about one instance."""

    @extend_schema(
        operation_id="list_instance_placements",
        parameters=[PageQuery],
        responses={200: shapes.page_of(PlacementAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, instance_id: str) -> Response:
        """List the decisions about each run of an instance, newest first."""
        query = queried(request, PageQuery)
        instance = access.instance_for(actor_of(request), instance_id, verb="instance.view")
        return paged(access.placements(instance), query, lambda found: [placement(row) for row in found])


class _PolicyDetail(APIView):
    """The policy of an organization or a project: one document, replaced as a whole."""

    def show(self, scope: Organization | Project) -> Response:
        return _answered(scope, policies.of(scope))

    def replace(self, request: Request, scope: Organization | Project) -> Response:
        row = policies.replace(
            actor=actor_of(request), scope=scope, document=request.data, version=_version(request), at=timezone.now()
        )
        return _answered(scope, row)


class OrganizationPolicy(_PolicyDetail):
    @extend_schema(
        operation_id="show_organization_policy", responses={200: PolicyAnswer, shapes.REFUSED: shapes.Problem}
    )
    def get(self, request: Request, organization_id: str) -> Response:
        """Show where instances of an organization may run."""
        queried(request)
        return self.show(access.organization_for(actor_of(request), organization_id, verb="policy.view"))

    @extend_schema(
        operation_id="replace_organization_policy", parameters=[IF_MATCH], request=ReplacePolicy,
        responses={200: PolicyAnswer, shapes.REFUSED: shapes.Problem},
    )  # fmt: skip
    def put(self, request: Request, organization_id: str) -> Response:
        """Replace the policy of an organization. It holds for every start from now on; what runs is not moved."""
        queried(request)
        scope = access.organization_for(actor_of(request), organization_id, verb="organization_policy.change")
        return self.replace(request, scope)


class ProjectPolicy(_PolicyDetail):
    @extend_schema(operation_id="show_project_policy", responses={200: PolicyAnswer, shapes.REFUSED: shapes.Problem})
    def get(self, request: Request, project_id: str) -> Response:
        """Show where instances of a project may run; its organization's policy holds beside it."""
        queried(request)
        return self.show(access.project_for(actor_of(request), project_id, verb="policy.view"))

    @extend_schema(
        operation_id="replace_project_policy", parameters=[IF_MATCH], request=ReplacePolicy,
        responses={200: PolicyAnswer, shapes.REFUSED: shapes.Problem},
    )  # fmt: skip
    def put(self, request: Request, project_id: str) -> Response:
        """Replace the policy of a project. It can only narrow what its organization's policy allows."""
        queried(request)
        return self.replace(request, access.project_for(actor_of(request), project_id, verb="policy.change"))


def _version(request: Request) -> int | None:
    given = request.headers.get("If-Match", "").strip().removeprefix("W/").strip('"')
    if given in {"", "*"}:
        return None
    if not given.isdecimal() or len(given) > 9:
        raise BadOrder("If-Match", "Send the ETag that you were given, or leave the header out.")
    return int(given)


def _answered(scope: Organization | Project, row: Policy | None) -> Response:
    version = row.version if row else 0
    answer = {
        "scope": "organization" if isinstance(scope, Organization) else "project",
        "id": scope.public_id,
        "document": row.document if row else {},
        "version": version,
        "updated_at": row.updated_at if row else None,
    }
    return Response(answer, headers={"ETag": f'"{version}"'})
