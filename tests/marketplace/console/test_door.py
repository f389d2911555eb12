"""Who may enter: every route of the console, walked."""

from collections.abc import Iterator

import pytest
from django.test import Client
from django.urls import reverse
from django.urls.resolvers import URLPattern

from marketplace.console.urls import urlpatterns
from marketplace.models import User


def routes() -> Iterator[tuple[str, str]]:
    for pattern in urlpatterns:
        assert isinstance(pattern, URLPattern)
        names = pattern.pattern.converters
        yield pattern.name or "", reverse(pattern.name, kwargs=dict.fromkeys(names, "abc_123"))


ROUTES = list(routes())
ONLY_POSTED = {
    "console-node-uncordon",
    "console-node-accept-inventory",
    "console-project-resume",
    "console-price-list-simulate",
}


def methods(name: str) -> list[str]:
    return ["post"] if name in ONLY_POSTED else ["get", "post"]


def test_a_stranger_is_asked_to_sign_in(client: Client, db: None, subtests: pytest.Subtests) -> None:
    for name, path in ROUTES:
        with subtests.test(name):
            answer = client.post(path) if name in ONLY_POSTED else client.get(path)
            assert (answer.status_code, answer.headers["Location"].split("?")[0]) == (302, reverse("account_login"))


def test_whoever_is_no_capacity_manager_finds_nothing(client: Client, alice: User, subtests: pytest.Subtests) -> None:
    client.force_login(alice)
    for name, path in ROUTES:
        with subtests.test(name):
            answers = [getattr(client, method)(path).status_code for method in methods(name)]
            assert set(answers) <= {404, 405}
            assert 404 in answers


def test_an_unknown_id_is_not_found(desk: Client, subtests: pytest.Subtests) -> None:
    for name, path in ROUTES:
        if "abc_123" in path:
            with subtests.test(name):
                for method in methods(name):
                    assert getattr(desk, method)(path, {"reason": "test"}).status_code in {404, 405}


def test_an_inactive_manager_is_a_stranger(desk: Client, carol: User) -> None:
    User.objects.filter(pk=carol.pk).update(is_active=False)
    assert desk.get(reverse("console")).status_code == 302


def test_pages_are_never_cached_and_keep_the_strict_policy(desk: Client) -> None:
    answer = desk.get(reverse("console"))
    assert "no-store" in answer.headers["Cache-Control"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
