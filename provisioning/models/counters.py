"""What workloads counted themselves, as their nodes read it from them."""

from django.db import models
from django.db.models import F, Q


class CounterSample(models.Model):
    """One reading of one counter of one replica, and by how much it grew since the one before, at `since`.

    The first reading of a run counts nothing. A counter that went backwards has begun anew, so all of it is new. What
    grew more than can be counts nothing, and `note` says so.
    """

    class Note(models.TextChoices):
        NONE = ""
        FIRST = "first"
        RESET = "reset"
        JUMP = "jump"

    instance = models.ForeignKey(
        "provisioning.Instance", models.CASCADE, related_name="counter_samples", db_index=False
    )
    assignment = models.ForeignKey("provisioning.Assignment", models.CASCADE, related_name="+", db_index=False)
    name = models.CharField(max_length=100)
    since = models.DateTimeField()
    at = models.DateTimeField()
    value = models.BigIntegerField()
    increase = models.BigIntegerField()
    note = models.CharField(max_length=5, choices=Note.choices, default=Note.NONE, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["assignment", "name", "at"], name="counter_sample_once_per_moment"),
            models.CheckConstraint(condition=Q(value__gte=0, increase__gte=0), name="counter_sample_counts_upwards"),
            models.CheckConstraint(condition=Q(at__gte=F("since")), name="counter_sample_ends_after_it_began"),
        ]
        indexes = [
            models.Index(fields=["instance", "name", "at"], name="counter_sample_of_instance"),
            models.Index(fields=["at"], name="counter_sample_oldest"),
        ]

    def __str__(self) -> str:
        return f"{self.name} of {self.assignment}: {self.value}"
