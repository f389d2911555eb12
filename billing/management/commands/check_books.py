"""`manage.py check_books`: the audit of the ledger, for a person or (`--json`) for a program."""

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from billing import books


class Command(BaseCommand):
    """Exits 0 when the books balance and 1 when they do not."""

    requires_system_checks = ()  # They import every page, which takes longer than most books.
    help = "Work out every balance, hold and charge a second time and report what differs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
        parser.add_argument("--recompute", action="store_true", help="work out every line of every invoice too")

    def handle(self, *args: Any, **options: Any) -> None:
        at = timezone.now()
        findings = books.check(at=at) + (books.recompute() if options["recompute"] else [])
        counts = books.counts()
        if options["json"]:
            report = {"as_of": at.isoformat(), "balanced": not findings, "counts": counts}
            self.stdout.write(json.dumps(report | {"findings": [asdict(finding) for finding in findings]}))
        else:
            for finding in findings:
                self.stdout.write(f"{finding.rule}: {finding.subject}: {finding.detail}")
            verdict = "The books balance" if not findings else f"{len(findings)} findings"
            self.stdout.write(f"{verdict}: " + ", ".join(f"{count} {rows}" for rows, count in counts.items()) + ".")
        if findings:
            sys.exit(1)
