"""Makes the demo world."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from marketplace import demo
from marketplace.environment import ENVIRONMENT


class Command(BaseCommand):
    """Seed sites, nodes, offers, people and credit; safe to repeat."""

    help = "Make the demo world: sites, nodes, offers, people and credit. Safe to repeat."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one line of JSON for programs")
        parser.add_argument("--new-token", action="store_true", help="issue a token even if an earlier one is good")

    def handle(self, *args: Any, **options: Any) -> None:
        if ENVIRONMENT.is_production:
            raise CommandError("The demo world has people whose passwords are printed; it is not for production.")
        world = demo.seed(at=timezone.now(), new_token=options["new_token"])
        if options["json"]:
            self.stdout.write(json.dumps(world))
            return
        for who in world["people"]:
            self.stdout.write(f"{who['email']:24} {who['password']:14} {who['note']}")
