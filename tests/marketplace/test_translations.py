"""Every text of the pages has its Japanese, and a Japanese page is Japanese."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from django.utils import translation

from marketplace.management.commands import translations
from marketplace.models import Organization, User
from provisioning.models import Instance
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import Page, read
from tests.marketplace.portal.test_pages import PAGES

# Words that are the same in both languages, or names.
SAME = {"GPU", "GPUs", "PUE", "English", "gpumarket", "Acme", "default", "H200", "L40S", "Narvik"}


@pytest.fixture(autouse=True)
def _english() -> Iterator[None]:
    """A request leaves its language behind in the thread."""
    with translation.override("en"):
        yield


def test_the_catalogue_is_complete_and_compiled() -> None:
    assert translations.faults() == []


# Read by programs, which speak English.
FILES = {"costs-csv", "costs-json", "receipts-file"}


@cache
def english_texts() -> set[str]:
    """Return the texts that stand in the catalogue as English and are not the Japanese of anything."""
    catalog = translations.read()
    texts = {message.id if isinstance(message.id, str) else message.id[0] for message in catalog if message.id}
    return texts - {message.string for message in catalog if isinstance(message.string, str)} - SAME


def english(page: Page) -> list[str]:
    """Return the texts of a page that should have been Japanese."""
    return [text for text in page.prose if text in english_texts()]


@pytest.mark.parametrize("name", [row[0] for row in PAGES if row[1] == 200 and row[0] not in FILES])
def test_a_japanese_page_is_japanese(alice: User, acme: Organization, running: Instance, name: str) -> None:
    page = read(browser(alice, language="ja").get(reverse(name)))
    if page.all("html"):
        assert page.all("html", lang="ja")
    assert english(page) == []
    assert any("\u3040" <= letter <= "\u9fff" for letter in page.text)


def test_an_instance_and_its_confirmations_are_japanese(alice: User, running: Instance) -> None:
    client = browser(alice, language="ja")
    for name in ("instance", "instance-stop", "instance-terminate", "instance-rename", "instance-start"):
        page = read(client.get(reverse(name, args=[running.public_id])))
        assert english(page) == []


def test_the_sign_in_page_and_refusals_are_japanese(
    client: Client, alice: User, acme: Organization, fleet: Any
) -> None:
    page = read(client.get(reverse("account_login"), headers={"Accept-Language": "ja"}))
    assert "ログイン" in page.text
    assert english(page) == []
    refused = browser(alice, language="ja").post(reverse("launch"), {"gpus": "0", "replicas": "1", "command": "true"})
    assert "GPU は 1 個以上" in read(refused).text


def test_the_language_is_switched_by_a_form(client: Client, db: None) -> None:
    client.post(reverse("set_language"), {"language": "ja", "next": reverse("account_login")})
    assert read(client.get(reverse("account_login"))).all("html", lang="ja")


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the catalogue that a test may spoil."""
    copy = tmp_path / "django.po"
    for suffix in (".po", ".mo"):
        copy.with_suffix(suffix).write_bytes(translations.path().with_suffix(suffix).read_bytes())
    monkeypatch.setattr(translations, "path", lambda: copy)
    return copy


def test_a_second_update_changes_nothing(catalogue: Path) -> None:
    files = (catalogue, catalogue.with_suffix(".mo"))
    before = [file.read_bytes() for file in files]
    with time_machine.travel("2040-01-01"):
        call_command("translations")
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    ("whole", "spoiled", "words"),
    [
        ('msgid "Copied"\nmsgstr "コピーしました"', 'msgid "Copied"\nmsgstr ""', "not translated: 'Copied'"),
        ('msgid "Copied"\nmsgstr "コピーしました"', "", "not in the catalogue: 'Copied'"),
        ('msgid "Copied"\nmsgstr "コピーしました"', '#, fuzzy\nmsgid "Copied"\nmsgstr "x"', "fuzzy: 'Copied'"),
        ('msgid "Copied"', 'msgid "No such text"\nmsgstr "x"\n\nmsgid "Copied"', "no longer used: 'No such text'"),
        ("コピーしました", "写しました", "was not compiled"),
        ("%(email)s さんを削除しました。", "%(mail)s さんを削除しました。", "other placeholders"),
    ],
)
def test_the_check_finds_each_kind_of_gap(catalogue: Path, whole: str, spoiled: str, words: str) -> None:
    text = catalogue.read_text()
    assert whole in text
    catalogue.write_text(text.replace(whole, spoiled))
    with pytest.raises(CommandError, match="then translate what is missing") as refused:
        call_command("translations", check=True)
    assert words in str(refused.value)
