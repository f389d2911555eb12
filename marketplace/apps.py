"""The shop front as a Django app."""

from django.apps import AppConfig


class MarketplaceConfig(AppConfig):
    """Makes our Celery app the one that `shared_task` sends through, in the web process as in the workers,
    and lets jobs hear at once of instances that end.
    """

    name = "marketplace"

    def ready(self) -> None:
        from marketplace import celery  # noqa: F401, PLC0415  the settings must be read first
        from marketplace.jobs import nudges  # noqa: PLC0415
        from provisioning.models.instances import moved  # noqa: PLC0415

        moved.connect(nudges.on_move, dispatch_uid="jobs")
