"""What is for sale."""

from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField


class Offer(models.Model):
    """A GPU model in a site from a supplier, with its terms. Nodes of one offer are interchangeable."""

    class Runtime(models.TextChoices):
        """What runs there: a command on the machine itself, an image in a container, or a job of a Slurm cluster."""

        PROCESS = "process", _("Process")
        PODMAN = "podman", _("Container")
        SLURM = "slurm", _("Slurm job")

    public_id = PublicIdField(prefix="ofr")
    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=100)
    supplier = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="offers")
    site = models.ForeignKey("provisioning.Site", models.PROTECT, related_name="offers")
    gpu_model = models.CharField(max_length=80)
    gpu_memory_gib = models.PositiveIntegerField()
    gpus_per_node = models.PositiveSmallIntegerField()
    interconnect = models.CharField(max_length=100)
    min_gpus = models.PositiveIntegerField(default=1)
    runtime = models.CharField(max_length=10, choices=Runtime.choices, default=Runtime.PROCESS)
    max_gpus = models.PositiveIntegerField(help_text="the most GPUs that one instance may have")
    is_listed = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(min_gpus__gte=1, max_gpus__gte=F("min_gpus")), name="offer_sizes_make_sense"
            )
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def sku(self) -> str:
        """What the till calls it."""
        return f"{self.public_id}/on_demand"

    @property
    def spot_sku(self) -> str:
        """What the till calls its floating price."""
        return f"{self.public_id}/spot"

    @property
    def spot_notice_sku(self) -> str:
        """What the till calls the price of those who were told that they are outbid."""
        return f"{self.public_id}/spot_notice"

    @property
    def reserved_sku(self) -> str:
        """What the till calls a GPU-hour of it that is paid ahead."""
        return f"{self.public_id}/reserved"
