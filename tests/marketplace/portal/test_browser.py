"""A real browser signs in, rents, sees it run and terminates it, against the live server."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.urls import reverse

from marketplace.models import Offer, Organization, User
from provisioning.models import Heartbeat, Instance
from tests.conftest import PASSWORD, Fleet, Run
from tests.packages import needs

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE_MS = 60_000

pytestmark = [
    pytest.mark.browser,
    needs("chromium"),
    pytest.mark.django_db(transaction=True),
]


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    # The driver's event loop lives in this thread, which makes Django refuse the database without this.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()
        # While that loop runs Django keeps connections of its own for it.
        connections.close_all()


@pytest.fixture
def window(browser: Any, live_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A page that fails the test on any error of a script and on anything that the content policy blocks."""
    # The browser keeps its connections open, and with them the server's threads: those must not keep the database.
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 0)
    page = browser.new_page(base_url=live_server.url)
    page.set_default_timeout(PATIENCE_MS)
    complaints: list[str] = []
    aborted: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("requestfailed", lambda request: aborted.append(request.url))
    yield page
    # Whoever goes on to another page cuts off what the last one was asking; htmx calls that an error.
    assert [said for said in complaints if not (aborted and said.startswith("htmx:"))] == []


@pytest.fixture
def lively_fleet(fleet: Fleet, run_until_idle: Run) -> Iterator[Fleet]:
    """The fleet, at work by itself while the browser looks on: what the workers and the agents do."""
    over = threading.Event()

    def work() -> None:
        try:
            while not over.wait(0.2):
                run_until_idle()
        finally:
            connections.close_all()

    worker = threading.Thread(target=work)
    worker.start()
    yield fleet
    over.set()
    worker.join(timeout=10)


def sign_in(window: Any, user: User) -> None:
    window.goto(reverse("account_login"))
    window.fill("[name=login]", user.email)
    window.fill("[name=password]", PASSWORD)
    window.click("button:has-text('Sign In')")
    window.wait_for_url("**/")


def test_somebody_signs_in_rents_sees_it_run_and_terminates_it(
    window: Any, alice: User, acme: Organization, lively_fleet: Fleet
) -> None:
    sign_in(window, alice)
    assert "Nothing is running, nothing is being charged" in window.inner_text("main")
    window.click("a.btn:has-text('Launch')")
    window.click("#launch-h200-narvik")

    # The price follows what is typed, before anything is sent.
    window.fill("#gpus", "2")
    window.wait_for_selector("#launch-button:has-text('$4.98/h when ready')")
    window.fill("#command", "sleep 1000")
    window.fill("#name", "trainer")
    window.dblclick("#launch-button")

    # Nobody reloads: the open page follows by itself.
    window.wait_for_selector("h1:has-text('trainer')")
    window.wait_for_selector("#cost:has-text('The meter is running')")
    window.wait_for_selector("#spending:has-text('$4.98/h now')")
    assert Instance.objects.count() == 1

    node = next(node for node in lively_fleet.nodes.values() if node.desired)
    node.prints("step 1 done\n")
    window.wait_for_selector(".log:has-text('step 1 done')")

    window.click("#do-terminate")
    assert "It cannot be started again." in window.inner_text("main")
    window.click("#confirm")
    window.wait_for_selector("#progress:has-text('It has ended for good')")
    window.wait_for_selector("#cost:has-text('Billing has ended')")
    assert Instance.objects.get().phase == "terminated"


def test_pages_fit_a_small_window_in_both_languages_and_themes(
    window: Any, alice: User, acme: Organization, lively_fleet: Fleet
) -> None:
    window.set_viewport_size({"width": 360, "height": 740})
    sign_in(window, alice)
    for language in ("ja", "en"):
        window.click(".person summary")
        window.click(f".person [name=language][value={language}]")
        window.wait_for_selector(f"html[lang={language}]")
        for name in ("home", "market", "launch", "instances", "balance", "tokens", "ssh-keys", "registries", "members",
                     "projects", "quotas", "waits", "audit", "help"):  # fmt: skip
            window.goto(reverse(name))
            assert window.evaluate("document.documentElement.scrollWidth") <= 360, (language, name)
    window.click(".person summary")
    window.click(".person [name=theme][value=dark]")
    window.wait_for_selector("html[data-bs-theme=dark]")


def test_the_keyboard_alone_reaches_the_content_and_opens_a_menu(window: Any, alice: User, acme: Organization) -> None:
    sign_in(window, alice)
    window.goto(reverse("market"))
    window.keyboard.press("Tab")
    assert window.evaluate("document.activeElement.className") == "skip"
    window.keyboard.press("Enter")
    assert window.evaluate("document.activeElement.id") == "content"
    window.focus(".person summary")
    window.keyboard.press("Enter")
    assert window.is_visible(".person .menu-panel")
    window.keyboard.press("Escape")
    assert not window.is_visible(".person .menu-panel")
    assert window.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_somebody_launches_an_image_and_finds_the_way_in(
    window: Any, alice: User, acme: Organization, lively_fleet: Fleet
) -> None:
    Offer.objects.filter(pk=lively_fleet.h200.pk).update(runtime="podman")
    Heartbeat.objects.update(access={"host": "n1.example", "ssh_port": 2222, "host_key": "ssh-ed25519 AAAA"})
    sign_in(window, alice)
    window.goto(reverse("launch") + "?offer=l40s-narvik")
    assert not window.is_visible("#image")

    # Another offer asks for other things, and what is typed meanwhile stays.
    window.select_option("#offer", "h200-narvik")
    window.wait_for_selector("#image")
    window.fill("#image", "registry.example.com/train")
    window.wait_for_selector("#cost:has-text('Say which version')")
    window.fill("#image", "registry.example.com/train:1")
    window.wait_for_selector("#cost:has-text('as a public one')")
    assert window.input_value("#image") == "registry.example.com/train:1"
    window.fill("#name", "boxed")
    window.click(".advanced summary")
    window.check("#lease-strict")
    window.check("#on_failure")
    window.wait_for_selector("#cost .check-bad", state="detached")
    window.click("#launch-button")

    window.wait_for_selector("#doors:has-text('gpumarket ssh boxed')")
    window.click("#doors details summary")
    # The page asks again and again; what is open for copying stays open.
    window.wait_for_timeout(4000)
    assert window.is_visible("#doors code:has-text('ssh -p 2222')")
    made = Instance.objects.get()
    assert (made.lease, made.on_failure, made.command) == ("strict", "restart", [])
