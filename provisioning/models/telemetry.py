"""How far readings are summed up. The readings are in partitioned tables without a model: see ../telemetry.py."""

from django.db import models


class RollUp(models.Model):
    """Up to when a level is summed up; it goes back where samples come late, and the sweep does that time again."""

    level = models.CharField(max_length=10, primary_key=True)
    until = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.level} until {self.until}"
