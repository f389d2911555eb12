"""What nodes saw of their assignments, in documents that they signed themselves."""

from django.db import models
from django.db.models import Q

from billing.public_ids import PublicIdField


class NodeKey(models.Model):
    """A public key with which a node signs (Ed25519). Its id follows from it; the private half never left the node."""

    public_id = models.CharField(max_length=36, unique=True, editable=False)
    node = models.ForeignKey("provisioning.Node", models.PROTECT, related_name="signing_keys")
    public_key = models.CharField(max_length=64, help_text="32 bytes in hexadecimal")
    told_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)
    revoked_because = models.CharField(max_length=200, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(revoked_at=None, revoked_because="")
                | (Q(revoked_at__isnull=False) & ~Q(revoked_because="")),
                name="node_key_is_revoked_for_a_reason",
            ),
        ]
        indexes = [models.Index(fields=["revoked_at"], name="node_key_revoked", condition=Q(revoked_at__isnull=False))]

    def __str__(self) -> str:
        return self.public_id


class NodeStatement(models.Model):
    """What a node stated of one assignment, once, as it came. With a `trouble` it is no evidence; that says why."""

    public_id = PublicIdField(prefix="nst")
    assignment = models.OneToOneField("provisioning.Assignment", models.CASCADE, related_name="statement")
    key = models.ForeignKey(NodeKey, models.PROTECT, null=True, related_name="statements")
    digest = models.CharField(max_length=64, help_text="SHA-256 of the document's canonical form")
    document = models.JSONField(help_text="body and signatures: texts, whole numbers and null, so it keeps its form")
    trouble = models.CharField(max_length=200, blank=True)
    taken_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(key__isnull=False) | ~Q(trouble=""), name="statement_without_a_key_is_no_evidence"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.assignment}: {self.trouble or 'stated'}"
