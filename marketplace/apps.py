"""The shop front as a Django app."""

from django.apps import AppConfig


class MarketplaceConfig(AppConfig):
    """Makes our Celery app the one that `shared_task` sends through, in the web process as in the workers."""

    name = "marketplace"

    def ready(self) -> None:
        from marketplace import celery  # noqa: F401, PLC0415  the settings must be read first
