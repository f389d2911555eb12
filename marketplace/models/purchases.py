"""What programs paid for ahead."""

from django.db import models


class TokenPurchase(models.Model):
    """A reservation, extension or trade that a token paid for ahead, so that its budget sees the payment."""

    resource_id = models.CharField(max_length=32, unique=True, help_text="as the transfers' keys name it")
    token = models.ForeignKey("marketplace.ApiToken", models.CASCADE, related_name="purchases")

    def __str__(self) -> str:
        return f"{self.resource_id} by {self.token}"
