"""Stretches in which an instance's GPUs did nothing."""

from datetime import datetime, timedelta

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField


class IdleAction(models.TextChoices):
    """What a project wants done about what is idle."""

    SHOW = "show", _("Show it")
    WARN = "warn", _("Show it and write an e-mail")
    STOP = "stop", _("Show it, write an e-mail, and stop it")


class IdleSpell(models.Model):
    """A run of an instance of which every GPU did nothing for an hour, from then until it did something, or was not
    read. It also carries its e-mail, so that a message that was lost or a sender that died loses none."""

    public_id = PublicIdField(prefix="idl")
    instance = models.ForeignKey("provisioning.Instance", models.CASCADE, related_name="idle_spells")
    run = models.PositiveIntegerField()
    since = models.DateTimeField(help_text="the beginning of the hour that made it one")
    found_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    tries = models.PositiveSmallIntegerField(default=0)
    next_try_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True, help_text="when the warning was sent")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["instance"], condition=Q(ended_at=None), name="idle_spell_one_open_per_instance"
            ),
            models.CheckConstraint(condition=Q(since__lt=F("found_at")), name="idle_spell_begins_before_it_is_found"),
        ]
        indexes = [models.Index(fields=["next_try_at"], name="idle_spell_open", condition=Q(ended_at=None))]

    def __str__(self) -> str:
        return f"{self.instance} since {self.since:%Y-%m-%d %H:%M}"

    @property
    def stops_at(self) -> datetime | None:
        """When the instance is stopped, where its project wants that and has been told."""
        project = self.instance.project
        if project.idle_action != IdleAction.STOP or self.sent_at is None:
            return None
        return self.sent_at + timedelta(minutes=project.idle_stop_minutes)
