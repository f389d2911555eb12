"""E-mail about what is idle: once for each spell, to whoever ordered it by a token, and to owners."""

from datetime import datetime

from django.conf import settings
from django.core.mail import EmailMessage
from django.urls import reverse
from django.utils import translation
from django.utils.translation import gettext as _

from marketplace import costs, outbox
from marketplace.models import IdleAction, IdleSpell, Role
from marketplace.money import shown


def send_due(*, at: datetime, limit: int) -> int:
    """Warn of spells where their project wants it; return how many warnings were sent. Each is sent once."""
    wanted = IdleSpell.objects.filter(ended_at=None).exclude(instance__project__idle_action=IdleAction.SHOW)
    rows = wanted.select_related(
        "instance__project__organization", "instance__price_version", "instance__ordered_with__membership__user"
    )
    return outbox.deliver(rows, lambda spell: written(spell, at=at), at=at, limit=limit)


def written(spell: IdleSpell, *, at: datetime) -> EmailMessage:
    """Return the warning, in the language of the organization's billing details."""
    instance = spell.instance
    project, cost = instance.project, costs.of([instance], at=at)[instance.pk]
    with translation.override(outbox.language_of(project.organization)):
        facts = {
            "name": instance.name, "project": project.name, "since": f"{spell.since:%Y-%m-%d %H:%M}",
            "price": shown(cost.per_hour_micros, cost.currency, exact=True), "minutes": project.idle_stop_minutes,
            "url": settings.PUBLIC_URL + reverse("instance", args=[instance.public_id]),
        }  # fmt: skip
        told = [
            _("The GPUs of %(name)s in %(project)s did nothing since %(since)s UTC. It costs %(price)s an hour.")
            % facts
        ]
        if project.idle_action == IdleAction.STOP:
            told.append(
                _(
                    "It is stopped %(minutes)s minutes after this message, unless its GPUs are used; its volumes are "
                    "kept."
                )
                % facts
            )
        told.append(_("See it, or stop it: %(url)s") % facts)
        subject = _("%(name)s is idle and costs money") % facts
    return EmailMessage(subject=subject, body="\n\n".join(told) + "\n", to=receivers(spell))


def receivers(spell: IdleSpell) -> list[str]:
    """Return who is warned: whoever's token ordered it, and the owners."""
    organization, token = spell.instance.project.organization, spell.instance.ordered_with
    found = set(outbox.people(organization, Role.OWNER))
    return sorted(found | ({token.membership.user.email} if token else set()))
