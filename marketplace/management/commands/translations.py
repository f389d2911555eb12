"""Keeps the Japanese of every page complete, without gettext's system package."""

import re
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils.translation.template import templatize

ROOMS = ("marketplace", "provisioning", "billing")
# These speak English to programs and terminals.
SILENT = ("migrations", "cli", "agent", "embedded")
KEYWORDS = {
    "_": None,
    "gettext": None,
    "gettext_lazy": None,
    "ngettext": (1, 2),
    "ngettext_lazy": (1, 2),
    "pgettext": ((1, "c"), 2),
    "pgettext_lazy": ((1, "c"), 2),
}
PLACEHOLDER = re.compile(r"%\(\w+\)s")
CHANGING = re.compile(rb'# |"(POT-Creation|PO-Revision|Last-Translator|Language-Team|Report-Msgid|Generated-By)')
TIMELESS = datetime(2000, 1, 1, tzinfo=UTC)
CATALOG = Path("ja/LC_MESSAGES/django.po")


class Command(BaseCommand):
    """Update the catalogue of translations and compile it; with --check only say what is wrong."""

    help = "Collect every text of the pages into the Japanese catalogue and compile it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--check", action="store_true", help="change nothing; fail if anything is missing or stale")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["check"]:
            update()
        if found := faults():
            raise CommandError("\n".join([*found, "Run manage.py translations, then translate what is missing."]))
        self.stdout.write(f"{len(read())} texts, all of them in Japanese.")


def path() -> Path:
    """Return where the catalogue lies; what is compiled from it lies beside it."""
    return Path(settings.LOCALE_PATHS[0]) / CATALOG


def read() -> Catalog:
    """Return the catalogue as it is written now; an empty one if there is none yet."""
    if not path().exists():
        return Catalog(locale="ja", domain="django")
    with path().open("rb") as file:
        return read_po(file, locale="ja", domain="django")


def extracted() -> Catalog:
    """Return every text that the pages and rooms ask to be translated."""
    catalog = Catalog(domain="django")
    for message in _texts():
        catalog.add(message.id, context=message.context)
    return catalog


def _texts() -> Iterator[Message]:
    root = Path(settings.BASE_DIR)
    for room in ROOMS:
        for source in sorted((root / room).rglob("*.py")):
            if not set(SILENT) & set(source.relative_to(root).parts):
                yield from _of_python(source.read_bytes())
    for source in sorted((root / "templates").rglob("*.html")):
        # Outside of texts a template becomes rows of X; without their indentation they read as Python.
        as_python = templatize(source.read_text(encoding="utf-8"), origin=str(source))
        yield from _of_python("\n".join(line.lstrip() for line in as_python.splitlines()).encode())


@cache
def _of_python(source: bytes) -> tuple[Message, ...]:
    """Return the texts of a source, found once: they are asked for again after writing."""
    found = extract("python", BytesIO(source), KEYWORDS, options={"encoding": "utf-8"})
    return tuple(Message(message, context=context) for _line, message, _comments, context in found)


def update() -> None:
    """Write the catalogue anew: texts that are there keep their Japanese, others wait for it; then compile it."""
    known = read()
    catalog = Catalog(locale="ja", domain="django", project="gpumarket", version="1", fuzzy=False, charset="utf-8")
    for message in extracted():
        if message.id:
            old = known.get(_key(message), context=message.context)
            string = old.string if old is not None and old.id == message.id else None
            catalog.add(message.id, string, context=message.context, flags=message.flags)
    written = BytesIO()
    write_po(written, catalog, width=120, sort_output=True, ignore_obsolete=True)
    path().parent.mkdir(parents=True, exist_ok=True)
    path().write_bytes(_timeless(written.getvalue()))
    path().with_suffix(".mo").write_bytes(compiled(read()))


def _timeless(text: bytes) -> bytes:
    """Return the file without what would change at every run: dates and names in its header."""
    return b"".join(line for line in text.splitlines(keepends=True) if not CHANGING.match(line))


def compiled(catalog: Catalog) -> bytes:
    """Return the catalogue in the form that Django reads."""
    file = BytesIO()
    # The library would write the present time into the header.
    catalog.creation_date = catalog.revision_date = TIMELESS
    write_mo(file, catalog)
    return file.getvalue()


def faults() -> list[str]:
    """Return what keeps a reader from complete Japanese, in words; nothing if all is well."""
    catalog, wanted = read(), extracted()
    found = [
        f"not in the catalogue: {message.id!r}"
        for message in wanted
        if message.id and catalog.get(_key(message), context=message.context) is None
    ]
    for message in catalog:
        if message.id:
            found += _faults_of(message, wanted)
    compiled_path = path().with_suffix(".mo")
    if not found and compiled_path.read_bytes() != compiled(catalog):
        found.append(f"{compiled_path.name} was not compiled from {path().name}")
    return found


def _faults_of(message: Message, wanted: Catalog) -> Iterator[str]:
    strings = [message.string] if isinstance(message.string, str) else list(message.string or [""])
    if wanted.get(_key(message), context=message.context) is None:
        yield f"no longer used: {message.id!r}"
    if not all(strings):
        yield f"not translated: {message.id!r}"
    if message.fuzzy:
        yield f"marked as fuzzy: {message.id!r}"
    # The last form of a plural names its number, which the others may leave out.
    names = set(PLACEHOLDER.findall(message.id if isinstance(message.id, str) else message.id[-1]))
    if all(strings) and any(set(PLACEHOLDER.findall(string)) != names for string in strings):
        yield f"with other placeholders than {sorted(names)}: {message.id!r}"


def _key(message: Message) -> str:
    return message.id if isinstance(message.id, str) else message.id[0]
