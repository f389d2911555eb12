"""The keys with which the platform signs receipts: to see, to rotate, to revoke."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from marketplace.errors import Conflict
from marketplace.models import SigningKey
from marketplace.receipts import chain, keys
from provisioning import statements
from provisioning.models import NodeKey
from provisioning.statements import AlreadyRevoked

BATCH = 500
MOMENT = "%Y-%m-%d %H:%M"


class Command(BaseCommand):
    """docs/receipts.md says when to do which."""

    help = "Show, rotate or revoke the keys with which the platform signs receipts."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        listing = actions.add_parser("list", help="every key and its state")
        listing.add_argument("--nodes", action="store_true", help="the keys of nodes instead of the platform's")
        actions.add_parser("rotate", help="sign with a new key; what the former one signed stays good")
        revoke = actions.add_parser("revoke", help="let nothing that a key signed count any more, and sign it anew")
        revoke.add_argument("key", help="its id; the key of a node is revoked in the same way")
        revoke.add_argument("--because", required=True, help="why; everybody who verifies reads it")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        at = timezone.now()
        if action == "rotate":
            self.stdout.write(f"{keys.rotate(at=at).public_id} signs from now on.")
        elif action == "revoke":
            self._revoke(options["key"], options["because"])
        elif options["nodes"]:
            for of_node in NodeKey.objects.select_related("node").order_by("node__name", "pk").iterator():
                state = f"revoked: {of_node.revoked_because}" if of_node.revoked_at else "active"
                self.stdout.write(f"{of_node.public_id} {of_node.node.name} {state} from {of_node.told_at:{MOMENT}}")
        else:
            for key in keys.every():
                because = f": {key.revoked_because}" if key.revoked_because else ""
                ended = f" until {key.retired_at:{MOMENT}}" if key.retired_at else ""
                self.stdout.write(f"{key.public_id} {key.state} from {key.created_at:{MOMENT}}{ended}{because}")

    def _revoke(self, name: str, because: str) -> None:
        at = timezone.now()
        key = SigningKey.objects.filter(public_id=name).first()
        of_node = NodeKey.objects.filter(public_id=name).first()
        try:
            if key is not None:
                now = keys.revoke(key=key, because=because, at=at)
                self.stdout.write(f"{name} is revoked; {now.public_id} signs.")
            elif of_node is not None:
                statements.revoke_key(key=of_node, because=because, at=at)
                self.stdout.write(f"{name} of {of_node.node.name} is revoked; its node needs a new signing key.")
                return
            else:
                raise CommandError(f"There is no key {name}; see: manage.py signing_keys list")
        except (Conflict, AlreadyRevoked) as refusal:
            raise CommandError(str(refusal)) from refusal
        done = 0
        while some := chain.sign_again(at=timezone.now(), limit=BATCH):
            done += some
        self.stdout.write(f"{done} receipts are signed anew.")
