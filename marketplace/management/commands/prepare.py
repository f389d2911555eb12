"""What `up` has to do with Django before it starts anything, in one process instead of two."""

import io
import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand

from marketplace.embedded.addresses import write_private


class Command(BaseCommand):
    """Migrate, and see to it that the demo world is there. `up` calls it."""

    help = "Bring the tables up to date and make the demo world (part of `up`)."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--into", type=Path, required=True, help="file for what `seed_demo --json` says; mode 0600")
        parser.add_argument("--new-token", action="store_true", help="issue the demo token again")

    def handle(self, *args: Any, into: Path, new_token: bool, **options: Any) -> None:
        call_command("migrate", interactive=False, verbosity=1)
        world = io.StringIO()
        call_command("seed_demo", json=True, new_token=new_token, stdout=world)
        write_private(into, json.dumps(json.loads(world.getvalue())))
