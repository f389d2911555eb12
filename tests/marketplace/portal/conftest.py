"""Browsers of the cast, and how a test reads a page."""

from collections.abc import Iterator

import pytest
from django.test import Client
from django.utils import translation

from marketplace.models import Organization, Role, User
from tests.conftest import make_member


@pytest.fixture(autouse=True)
def _english() -> Iterator[None]:
    """A request leaves its language behind in the thread."""
    with translation.override("en"):
        yield


def browser(user: User, *, language: str = "en") -> Client:
    client = Client(headers={"Accept-Language": language})
    client.force_login(user)
    return client


@pytest.fixture
def dora(acme: Organization) -> User:
    """Develops at Acme: rents, but does not manage."""
    return make_member(acme, "dora@acme.example", Role.DEVELOPER)


@pytest.fixture
def owner(alice: User, acme: Organization) -> Client:
    """Alice's browser."""
    return browser(alice)


@pytest.fixture
def developer(dora: User) -> Client:
    """Dora's browser."""
    return browser(dora)


@pytest.fixture
def viewer(bob: User) -> Client:
    """Bob's browser."""
    return browser(bob)


@pytest.fixture
def stranger(charlie: User) -> Client:
    """Charlie's browser."""
    return browser(charlie)
