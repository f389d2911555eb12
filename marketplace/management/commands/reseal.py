"""Seals every secret with today's secret key, so that a former one may be forgotten."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from marketplace.models import SigningKey, WebhookEndpoint
from provisioning import resealing

SEALED = (
    (WebhookEndpoint, "secret_sealed"),
    (WebhookEndpoint, "former_secret_sealed"),
    (SigningKey, "private_sealed"),
)


class Command(BaseCommand):
    """Run it after a new GPUMARKET_SECRET_KEY, before the former one leaves GPUMARKET_SECRET_KEY_FALLBACKS."""

    help = "Seal what rests encrypted with today's secret key."

    def handle(self, *args: Any, **options: Any) -> None:
        done, unreadable = resealing.reseal((*resealing.SEALED, *SEALED))
        if unreadable:
            lost = ", ".join(unreadable)
            raise CommandError(f"{done} sealed anew; these need a key that is no more a fallback: {lost}")
        self.stdout.write(f"{done} sealed anew; former secret keys are needed no more.")
