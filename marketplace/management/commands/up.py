"""Lists `up` among the commands; `manage.py` itself runs it before any settings are read."""

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from marketplace.embedded import up


class Command(BaseCommand):
    """Run a whole marketplace on this machine."""

    help = "Run a whole marketplace on this machine: servers, demo world, web, workers, nodes. Ctrl-C stops it."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        up.add_arguments(parser)

    def handle(self, *args: Any, port: int, home: Path, fresh: bool, agents: int, **options: Any) -> None:
        sys.exit(up.up(up.Options(port=port, home=home, fresh=fresh, agents=agents)))
