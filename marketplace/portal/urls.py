"""Every route of the portal."""

from django.urls import path
from django.views.i18n import set_language

from marketplace.portal import (
    balance,
    home,
    instances,
    invitations,
    launching,
    market,
    members,
    organizations,
    preferences,
    projects,
    ssh_keys,
    tokens,
)

urlpatterns = [
    path("", home.home, name="home"),
    path("help", home.help_page, name="help"),
    path("market", market.market, name="market"),
    path("launch", launching.launch, name="launch"),
    path("launch/estimate", launching.estimate, name="launch-estimate"),
    path("instances", instances.listed, name="instances"),
    path("instances/<str:instance_id>", instances.shown, name="instance"),
    path("instances/<str:instance_id>/log", instances.log, name="instance-log"),
    path("instances/<str:instance_id>/log.txt", instances.log_file, name="instance-log-file"),
    path("instances/<str:instance_id>/start", instances.start, name="instance-start"),
    path("instances/<str:instance_id>/stop", instances.stop, name="instance-stop"),
    path("instances/<str:instance_id>/terminate", instances.terminate, name="instance-terminate"),
    path("instances/<str:instance_id>/rename", instances.rename, name="instance-rename"),
    path("balance", balance.balance, name="balance"),
    path("tokens", tokens.listed, name="tokens"),
    path("tokens/<str:token_id>/revoke", tokens.revoke, name="token-revoke"),
    path("ssh-keys", ssh_keys.listed, name="ssh-keys"),
    path("ssh-keys/<str:key_id>/remove", ssh_keys.remove, name="ssh-key-remove"),
    path("members", members.listed, name="members"),
    path("members/<str:member_id>/role", members.change_role, name="member-role"),
    path("members/<str:member_id>/remove", members.remove, name="member-remove"),
    path("invitations", members.invite, name="member-invite"),
    path("invitations/<str:invitation_id>/revoke", members.revoke_invitation, name="member-invitation-revoke"),
    path("invitations/<str:secret>", invitations.invitation, name="invitation"),
    path("projects", projects.listed, name="projects"),
    path("projects/<str:project_id>", projects.rename, name="project-rename"),
    path("audit", organizations.audit_log, name="audit"),
    path("organizations/choose", organizations.choose, name="organization-choose"),
    path("organizations/new", organizations.new, name="organization-new"),
    path("organizations/rename", organizations.rename, name="organization-rename"),
    path("theme", preferences.set_theme, name="theme"),
    path("language", set_language, name="set_language"),
]
