"""Organizations, projects, people, tokens, keys, and the record of changes."""

from typing import Any

from django.conf import settings
from django.urls import reverse
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, tenants, tokens
from marketplace.api import answers, shapes, tenant_shapes
from marketplace.api.pages import PageQuery, checked, paged, queried
from marketplace.api.views import KEY_ACCEPTED, actor_of, answered_once, naming
from marketplace.models import Role


class Me(APIView):
    """Who the token speaks for."""

    @extend_schema(operation_id="show_me", responses={200: tenant_shapes.MeAnswer, shapes.REFUSED: shapes.Problem})
    def get(self, request: Request) -> Response:
        """Show the person, organization, token and projects behind this request."""
        queried(request)
        actor = actor_of(request)
        organization = access.organization_for(actor, None, verb="organization.view")
        role_of = {membership.organization_id: membership.role for membership in access.memberships(actor)}
        token = actor.token
        assert token is not None
        return Response(
            {
                "user": {"email": actor.user.email, "name": actor.user.display_name},
                "organization": answers.organization(organization),
                "token": {
                    "id": token.public_id, "name": token.name, "scopes": token.scopes, "expires_at": token.expires_at
                },
                "projects": [
                    {
                        "id": project.public_id,
                        "name": project.name,
                        "role": role_of[project.organization_id],
                        "suspended": project.is_suspended,
                    }
                    for project in access.projects(actor).order_by("pk")
                ],
            }
        )  # fmt: skip


class OrganizationList(APIView):
    @extend_schema(
        operation_id="list_organizations",
        parameters=[PageQuery],
        responses={200: shapes.page_of(shapes.OrganizationAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the organizations that the token may see."""
        query = queried(request, PageQuery)
        rows = access.organizations(actor_of(request))
        return paged(rows, query, lambda found: [answers.organization(row) for row in found])


class OrganizationDetail(APIView):
    @extend_schema(
        operation_id="show_organization", responses={200: shapes.OrganizationAnswer, shapes.REFUSED: shapes.Problem}
    )
    def get(self, request: Request, organization_id: str) -> Response:
        """Show an organization."""
        queried(request)
        row = access.organization_for(actor_of(request), organization_id, verb="organization.view")
        return Response(answers.organization(row))

    @extend_schema(
        operation_id="rename_organization",
        request=shapes.NameOnly,
        responses={200: shapes.OrganizationAnswer, shapes.REFUSED: shapes.Problem},
    )
    def patch(self, request: Request, organization_id: str) -> Response:
        """Give an organization another name."""
        queried(request)
        actor = actor_of(request)
        row = access.organization_for(actor, organization_id, verb="organization.change")
        tenants.rename_organization(actor=actor, organization=row, name=checked(shapes.NameOnly, request.data)["name"])
        return Response(answers.organization(row))


class ProjectList(APIView):
    @extend_schema(
        operation_id="list_projects",
        parameters=[PageQuery],
        responses={200: shapes.page_of(tenant_shapes.ProjectAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the projects that the token may see."""
        query = queried(request, PageQuery)
        rows = access.projects(actor_of(request))
        return paged(rows, query, lambda found: [answers.project(row) for row in found])

    @extend_schema(
        operation_id="create_project",
        request=shapes.CreateProject,
        responses={201: tenant_shapes.ProjectAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Make a project."""
        queried(request)
        actor, asked = actor_of(request), checked(shapes.CreateProject, request.data)
        with naming("organization"):
            organization = access.organization_for(actor, asked.get("organization"), verb="project.create")
        row = tenants.create_project(actor=actor, organization=organization, name=asked["name"])
        return Response(answers.project(row), status=201)


class ProjectDetail(APIView):
    @extend_schema(
        operation_id="show_project", responses={200: tenant_shapes.ProjectAnswer, shapes.REFUSED: shapes.Problem}
    )
    def get(self, request: Request, project_id: str) -> Response:
        """Show a project."""
        queried(request)
        return Response(answers.project(access.project_for(actor_of(request), project_id, verb="project.view")))

    @extend_schema(
        operation_id="rename_project",
        request=shapes.NameOnly,
        responses={200: tenant_shapes.ProjectAnswer, shapes.REFUSED: shapes.Problem},
    )
    def patch(self, request: Request, project_id: str) -> Response:
        """Give a project another name."""
        queried(request)
        actor = actor_of(request)
        row = access.project_for(actor, project_id, verb="project.change")
        tenants.rename_project(actor=actor, project=row, name=checked(shapes.NameOnly, request.data)["name"])
        return Response(answers.project(row))


class MemberList(APIView):
    @extend_schema(
        operation_id="list_members",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(tenant_shapes.MemberAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the people of an organization."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        with naming("organization"):
            organization = access.organization_for(actor_of(request), query.get("organization"), verb="member.view")
        return paged(access.members(organization), query, lambda found: [answers.member(row) for row in found])


class MemberDetail(APIView):
    @extend_schema(
        operation_id="show_member", responses={200: tenant_shapes.MemberAnswer, shapes.REFUSED: shapes.Problem}
    )
    def get(self, request: Request, membership_id: str) -> Response:
        """Show a member."""
        queried(request)
        return Response(answers.member(access.member_for(actor_of(request), membership_id, verb="member.view")))

    @extend_schema(
        operation_id="change_role",
        request=shapes.ChangeRole,
        responses={200: tenant_shapes.MemberAnswer, shapes.REFUSED: shapes.Problem},
    )
    def patch(self, request: Request, membership_id: str) -> Response:
        """Give a member another role."""
        queried(request)
        actor = actor_of(request)
        row = access.member_for(actor, membership_id, verb="member.change")
        tenants.change_role(actor=actor, member=row, role=Role(checked(shapes.ChangeRole, request.data)["role"]))
        return Response(answers.member(row))

    @extend_schema(operation_id="remove_member", responses={204: None, shapes.REFUSED: shapes.Problem})
    def delete(self, request: Request, membership_id: str) -> Response:
        """Take a person out of the organization; their tokens end with it."""
        queried(request)
        actor = actor_of(request)
        row = access.member_for(actor, membership_id, verb="member.change")
        tenants.remove_member(actor=actor, member=row)
        return Response(status=204)


class InvitationList(APIView):
    @extend_schema(
        operation_id="list_invitations",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(tenant_shapes.InvitationAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List invitations, used and revoked ones too."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        with naming("organization"):
            organization = access.organization_for(actor_of(request), query.get("organization"), verb="invitation.view")
        rows = access.invitations(organization)
        return paged(rows, query, lambda found: [answers.invitation(row) for row in found])

    @extend_schema(
        operation_id="invite",
        request=shapes.CreateInvitation,
        responses={201: tenant_shapes.NewInvitationAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Invite an e-mail address; the link is in this answer only."""
        queried(request)
        actor, asked = actor_of(request), checked(shapes.CreateInvitation, request.data)
        with naming("organization"):
            organization = access.organization_for(actor, asked.get("organization"), verb="invitation.change")
        row, secret = tenants.invite(
            actor=actor, organization=organization, email=asked["email"], role=Role(asked["role"]), at=timezone.now()
        )
        link = settings.PUBLIC_URL + reverse("invitation", args=[secret])
        return Response({**answers.invitation(row), "link": link}, status=201)


class InvitationDetail(APIView):
    @extend_schema(operation_id="revoke_invitation", responses={204: None, shapes.REFUSED: shapes.Problem})
    def delete(self, request: Request, invitation_id: str) -> Response:
        """Make an invitation's link useless."""
        queried(request)
        actor = actor_of(request)
        row = access.invitation_for(actor, invitation_id, verb="invitation.change")
        tenants.revoke_invitation(actor=actor, invitation=row, at=timezone.now())
        return Response(status=204)


class TokenList(APIView):
    @extend_schema(
        operation_id="list_tokens",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(tenant_shapes.TokenAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List your tokens; owners and admins see everybody's."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        actor = actor_of(request)
        with naming("organization"):
            organization = access.organization_for(actor, query.get("organization"), verb="token.view")
        rows = access.tokens(actor, organization)
        return paged(rows, query, lambda found: [answers.token(row) for row in found])

    @extend_schema(
        operation_id="create_token",
        request=shapes.CreateToken,
        responses={201: tenant_shapes.NewTokenAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Make a token of your own; its secret is in this answer only."""
        queried(request)
        actor, asked = actor_of(request), checked(shapes.CreateToken, request.data)
        with naming("organization"):
            organization = access.organization_for(actor, asked.get("organization"), verb="token.change")
        with naming("project"):
            project = access.project_for(actor, asked["project"], verb="project.view") if "project" in asked else None
        row, secret = tokens.create_token(
            actor=actor,
            organization=organization,
            name=asked["name"],
            scopes=asked["scopes"],
            days=asked["days"],
            project=project,
            at=timezone.now(),
        )
        return Response({**answers.token(row), "secret": secret}, status=201)


class TokenDetail(APIView):
    @extend_schema(operation_id="revoke_token", responses={204: None, shapes.REFUSED: shapes.Problem})
    def delete(self, request: Request, token_id: str) -> Response:
        """Make a token useless at once."""
        queried(request)
        actor = actor_of(request)
        row = access.token_for(actor, token_id, verb="token.change")
        tokens.revoke_token(actor=actor, token=row, at=timezone.now())
        return Response(status=204)


class SshKeyList(APIView):
    @extend_schema(
        operation_id="list_ssh_keys",
        parameters=[shapes.ProjectQuery, PageQuery],
        responses={200: shapes.page_of(tenant_shapes.SshKeyAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the SSH keys of a project."""
        query = queried(request, shapes.ProjectQuery, PageQuery)
        with naming("project"):
            project = access.project_for(actor_of(request), query.get("project"), verb="ssh_key.view")
        return paged(access.ssh_keys(project), query, lambda found: [answers.ssh_key(row) for row in found])

    @extend_schema(
        operation_id="add_ssh_key",
        parameters=[KEY_ACCEPTED],
        request=shapes.AddSshKey,
        responses={201: tenant_shapes.SshKeyAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Let a public key into a project's instances."""
        queried(request)
        actor, asked = actor_of(request), checked(shapes.AddSshKey, request.data)
        with naming("project"):
            project = access.project_for(actor, asked.pop("project", None), verb="ssh_key.change")

        def effect() -> tuple[int, Any]:
            return 201, answers.ssh_key(tokens.add_ssh_key(actor=actor, project=project, **asked))

        order = {**asked, "project": project.public_id}
        return answered_once(request, organization=project.organization, order=order, effect=effect, required=False)


class SshKeyDetail(APIView):
    @extend_schema(operation_id="remove_ssh_key", responses={204: None, shapes.REFUSED: shapes.Problem})
    def delete(self, request: Request, key_id: str) -> Response:
        """Shut a public key out."""
        queried(request)
        actor = actor_of(request)
        tokens.remove_ssh_key(actor=actor, key=access.ssh_key_for(actor, key_id, verb="ssh_key.change"))
        return Response(status=204)


class AuditList(APIView):
    @extend_schema(
        operation_id="list_audit",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(tenant_shapes.AuditAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List who changed what, newest first."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        with naming("organization"):
            organization = access.organization_for(actor_of(request), query.get("organization"), verb="audit.view")
        rows = access.audit_entries(organization)
        return paged(rows, query, lambda found: [answers.audit_entry(row) for row in found])
