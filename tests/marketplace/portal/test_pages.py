"""Which pages there are, who may see them, and that each is sound."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from django.urls import URLPattern, reverse
from django.utils import timezone

from billing.invoicing import issuing, sellers
from billing.models import Card, Payment, UsageSpan
from marketplace import spot, spot_terms
from marketplace.access import Actor, person
from marketplace.events import endpoints
from marketplace.jobs import spec, submitting
from marketplace.models import (
    Contract,
    Invitation,
    Job,
    Membership,
    Offer,
    Organization,
    Project,
    RevenuePeriod,
    User,
)
from marketplace.portal import urls
from marketplace.revenue_share import periods
from provisioning.calendar import hour_of
from provisioning.models import Instance, Quota
from tests import agreed
from tests.blocks import Buyer, sell_blocks
from tests.conftest import Fleet, Storage, make_person, make_token, order
from tests.marketplace.invoices.conftest import use_last_month
from tests.marketplace.portal.conftest import browser
from tests.marketplace.portal.reading import faults, read
from tests.marketplace.receipts.conftest import append
from tests.outcomes import BY_CUSTOMER, make_deal

# Pages without an id in their address; owner, developer, viewer.
PAGES = [
    ("home", 200, 200, 200),
    ("help", 200, 200, 200),
    ("spending", 200, 200, 200),
    ("market", 200, 200, 200),
    ("launch", 200, 200, 403),
    ("launch-estimate", 405, 405, 405),
    ("instances", 200, 200, 200),
    ("bids", 200, 200, 200),
    ("volumes", 200, 200, 200),
    ("volume-new", 200, 200, 403),
    ("volume-estimate", 405, 405, 405),
    ("reservations", 200, 200, 200),
    ("hours", 200, 200, 200),
    ("listings", 200, 200, 200),
    ("listings-buy", 405, 405, 405),
    ("outcomes", 200, 200, 200),
    ("claims", 200, 200, 200),
    ("claim-disputes", 200, 200, 200),
    ("balance", 200, 200, 200),
    ("costs-csv", 200, 200, 200),
    ("costs-json", 200, 200, 200),
    ("usage", 200, 200, 200),
    ("service-levels", 200, 200, 200),
    ("commitments", 200, 200, 200),
    ("revenue", 200, 403, 403),
    ("supplier", 200, 403, 403),
    ("supplier-nodes", 404, 403, 403),
    ("supplier-statements", 404, 403, 403),
    ("supplier-payouts", 404, 403, 403),
    ("supplier-connect", 405, 405, 405),
    ("invoices", 200, 403, 403),
    ("receipts", 200, 200, 200),
    ("receipts-file", 200, 200, 200),
    ("payment-methods", 200, 403, 403),
    ("card-add", 409, 403, 403),
    ("top-up", 200, 403, 403),
    ("automatic-top-up", 405, 405, 405),
    ("billing-details", 200, 403, 403),
    ("tokens", 200, 200, 200),
    ("ssh-keys", 200, 200, 200),
    ("registries", 200, 200, 200),
    ("events", 200, 200, 200),
    ("webhooks", 200, 403, 403),
    ("members", 200, 200, 200),
    ("member-invite", 405, 405, 405),
    ("projects", 200, 200, 200),
    ("quotas", 200, 200, 200),
    ("budgets", 200, 200, 200),
    ("jobs", 200, 200, 200),
    ("job-new", 200, 200, 403),
    ("waits", 200, 200, 200),
    ("policies", 200, 200, 200),
    ("audit", 200, 403, 403),
    ("organization-choose", 405, 405, 405),
    ("organization-new", 200, 200, 200),
    ("organization-rename", 200, 403, 403),
    ("theme", 405, 405, 405),
    ("set_language", 302, 302, 302),
]
# Pages of one thing; `of` names what makes it.
OF_ONE = [
    ("instance", "instance", 200, 200, 200),
    ("instance-sla", "instance", 200, 200, 200),
    ("instance-guarantee", "instance", 200, 200, 200),
    ("revenue-period", "period", 200, 403, 403),
    ("instance-log", "instance", 200, 200, 200),
    ("instance-telemetry", "instance", 200, 200, 200),
    ("instance-log-file", "instance", 200, 200, 200),
    ("instance-start", "instance", 200, 200, 403),
    ("instance-stop", "instance", 200, 200, 403),
    ("instance-terminate", "instance", 200, 200, 403),
    ("instance-rename", "instance", 200, 200, 403),
    ("instance-interrupt", "instance", 200, 200, 403),
    ("webhook", "webhook", 200, 403, 403),
    ("webhook-remove", "webhook", 200, 403, 403),
    ("webhook-rotate", "webhook", 405, 405, 405),
    ("webhook-test", "webhook", 405, 405, 405),
    ("webhook-replay", "webhook", 405, 405, 405),
    ("webhook-resend", "delivery", 405, 405, 405),
    ("bid", "bid", 200, 200, 403),
    ("bid-withdraw", "bid", 200, 200, 403),
    ("volume", "volume", 200, 200, 200),
    ("volume-delete", "volume", 200, 200, 403),
    ("volume-restore", "volume", 200, 200, 403),
    ("volume-snapshot", "volume", 200, 200, 403),
    ("volume-resize", "volume", 200, 200, 403),
    ("placement", "placement", 200, 200, 200),
    ("volume-attach", "volume", 200, 200, 403),
    ("volume-detach", "volume", 200, 200, 403),
    ("volume-rename", "volume", 200, 200, 403),
    ("reservation", "reservation", 200, 200, 200),
    ("reservation-extend", "reservation", 200, 200, 403),
    ("reservation-sell", "reservation", 200, 200, 403),
    ("reservation-cancel", "reservation", 405, 405, 405),
    ("reservation-lend", "reservation", 405, 405, 405),
    ("quote", "quote", 200, 200, 200),
    ("listing-withdraw", "listing", 405, 405, 405),
    ("outcome", "product", 200, 200, 200),
    ("claim", "claim", 200, 200, 200),
    ("claim-accept", "claim", 405, 405, 405),
    ("claim-reject", "claim", 405, 405, 405),
    ("claim-dispute", "claim", 405, 405, 405),
    ("claim-reverse", "claim", 405, 405, 405),
    ("claim-void", "claim", 405, 405, 405),
    ("claim-dispute-answer", "claim", 405, 405, 405),
    ("claim-dispute-withdraw", "claim", 405, 405, 405),
    ("usage-span", "span", 200, 200, 200),
    ("invoice", "invoice", 200, 403, 403),
    ("invoice-pdf", "invoice", 200, 403, 403),
    ("invoice-csv", "invoice", 200, 403, 403),
    ("receipt", "receipt", 200, 200, 200),
    ("receipt-file", "receipt", 200, 200, 200),
    ("card-remove", "card", 200, 403, 403),
    ("payment", "payment", 200, 403, 403),
    ("payment-continue", "payment", 302, 403, 403),
    ("payment-cancel", "payment", 405, 405, 405),
    ("invoice-pay", "invoice", 405, 405, 405),
    ("invoice-dispute", "invoice", 200, 403, 403),
    ("dispute-withdraw", "dispute", 405, 405, 405),
    ("commitment-accept", "dispute", 405, 405, 405),
    ("commitment-refuse", "dispute", 405, 405, 405),
    ("commitment-request-withdraw", "dispute", 405, 405, 405),
    ("token-revoke", "token", 200, 404, 404),
    ("ssh-key-remove", "key", 200, 200, 403),
    ("registry-remove", "registry", 200, 200, 403),
    ("member-role", "member", 405, 405, 405),
    ("member-remove", "member", 200, 403, 403),
    ("member-invitation-revoke", "invitation", 405, 405, 405),
    ("project-rename", "project", 200, 403, 403),
    ("project-idle", "project", 200, 403, 403),
    ("budget", "project", 200, 403, 403),
    ("quota-request-withdraw", "request", 405, 405, 405),
    ("job", "job", 200, 200, 200),
    ("job-cancel", "job", 200, 200, 403),
    ("wait-cancel", "wait", 405, 405, 405),
]
# Open to whoever has the link.
BY_LINK = {"invitation"}
# Of an offer, which everybody signed in may know: `test_spot` looks at them.
OF_AN_OFFER = {"spot", "spot-auction"}
# Of one task: `test_jobs` looks at it.
OF_A_TASK = {"job-task"}
# Of a supplier, which Acme is not: `test_supplier` looks at them.
OF_A_SUPPLIER = {"supplier-statement", "supplier-statement-pdf", "supplier-statement-csv"}
FRAGMENTS = {
    "payment-continue",
    "spending", "instance-log", "instance-telemetry", "instance-log-file", "invoice-pdf", "invoice-csv", "costs-csv",
    "costs-json", "receipts-file", "receipt-file",
}  # fmt: skip
Things = dict[str, str]


@pytest.fixture
def things(running: Instance, acme: Organization, alice: User, project: Project, bob: User, storage: Storage) -> Things:
    """One of each, all Alice's or Acme's."""
    make_token(alice, acme)
    owner = browser(alice)
    key = {"name": "laptop", "public_key": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{'A' * 43}", "project": ""}
    owner.post(reverse("ssh-keys"), key)
    owner.post(reverse("webhooks"), {"url": "https://hooks.example.com/"})
    owner.post(reverse("registries"), {"host": "a.example", "username": "bot", "password": "p"})
    owner.post(reverse("member-invite"), {"email": "new@acme.example", "role": "viewer"})
    offer = running.offer
    spot_terms.set_terms(offer=offer, by="carol@operator.example", at=timezone.now(), reserve_micros=500_000)
    with transaction.atomic():
        bid = spot.bid(
            actor=person(alice), project=project, order=order(offer), max_price_micros=600_000, at=timezone.now()
        )
    held = reserve_some(person(alice), project, running.offer)
    sellers.save_details(organization=acme, legal_name="Acme", address="Oslo", country="NO")
    sellers.name_seller(organization=acme)
    use_last_month(acme)
    card, payment = pay_once(acme)
    deal = make_deal(acme, **BY_CUSTOMER)
    Contract.objects.update(buyer=acme)
    return held | {
        "instance": running.public_id,
        "invoice": issuing.issue(organization=acme, at=timezone.now()).public_id,
        "receipt": append(acme, "clm_1")[0].public_id,
        "card": card.public_id,
        "payment": payment.public_id,
        "dispute": project.public_id,
        "product": deal.version.public_id,
        "claim": deal.claim(project, "frame 1").public_id,
        "span": UsageSpan.objects.filter(organization=acme).earliest("pk").public_id,
        "bid": bid.public_id,
        "placement": running.decisions.get().public_id,
        "token": acme.memberships.get(user=alice).tokens.get().public_id,
        "key": project.ssh_keys.get().public_id,
        "registry": project.registries.get().public_id,
        "webhook": acme.webhooks.get().public_id,
        "delivery": endpoints.test(actor=person(alice), endpoint=acme.webhooks.get(), at=timezone.now()).public_id,
        "member": Membership.objects.get(user=bob).public_id,
        "invitation": Invitation.objects.get().public_id,
        "project": project.public_id,
        "volume": storage.make().public_id,
        "request": project.public_id,
        "wait": project.public_id,
        "job": submit_one(person(alice), project).public_id,
        "period": share_revenue(running, acme, alice),
    }


def share_revenue(running: Instance, acme: Organization, alice: User) -> str:
    """Agree to share revenue; return the id of the period that runs."""
    agreed.share_revenue(running.offer.supplier, acme, alice, timezone.now())
    periods.open_due(at=timezone.now(), limit=10)
    return RevenuePeriod.objects.get().public_id


def submit_one(actor: Actor, project: Project) -> Job:
    at = timezone.now()
    specs = spec.from_values([{"offer": "h200-narvik", "command": ["work"]}], at=at)
    return submitting.submit(actor=actor, project=project, specs=specs, folders={}, at=at)[0]


def pay_once(organization: Organization) -> tuple[Card, Payment]:
    """A card, and a payment with it that failed."""
    card = Card.objects.create(
        organization=organization, processor_id="pm_1", brand="visa", last4="4242", exp_month=1, exp_year=2030
    )
    payment = Payment.objects.create(
        key="paid", organization=organization, purpose=Payment.Purpose.TOP_UP, amount_micros=1_000_000,
        currency="USD", card=card, state=Payment.State.FAILED, failure_text="Your card was declined.",
        created_at=timezone.now(), finished_at=timezone.now(),
    )  # fmt: skip
    return card, payment


def reserve_some(actor: Actor, project: Project, offer: Offer) -> Things:
    """Reserve GPUs, list some of their hours, and ask for a quote of more."""
    sell_blocks(offer)
    buyer = Buyer(actor, project, offer, hour_of(timezone.now()) + timedelta(hours=1))
    reservation = buyer.buy(2, 200, 210)
    return {
        "reservation": reservation.public_id,
        "listing": buyer.put_up(reservation, 1, 200, 204, 1_500_000).public_id,
        "quote": buyer.quote(1, 400, 401).public_id,
    }


def test_every_route_has_a_row_here() -> None:
    names = {pattern.name for pattern in urls.urlpatterns if isinstance(pattern, URLPattern)}
    assert names == {row[0] for row in [*PAGES, *OF_ONE]} | BY_LINK | OF_AN_OFFER | OF_A_TASK | OF_A_SUPPLIER


def test_each_role_sees_what_the_table_says(
    owner: Client, developer: Client, viewer: Client, fleet: Fleet, subtests: pytest.Subtests
) -> None:
    for name, *expected in PAGES:
        with subtests.test(name):
            seen = [client.get(reverse(name)) for client in (owner, developer, viewer)]
            assert [answer.status_code for answer in seen] == expected
            for answer in seen:
                assert "unsafe" not in answer.headers["Content-Security-Policy"]
                if not answer.streaming and answer.content and name not in FRAGMENTS:
                    assert faults(read(answer)) == []


def test_each_role_sees_of_one_thing_what_the_table_says(
    things: Things, owner: Client, developer: Client, viewer: Client, subtests: pytest.Subtests
) -> None:
    for name, of, *expected in OF_ONE:
        with subtests.test(name):
            seen = [client.get(reverse(name, args=[things[of]])) for client in (owner, developer, viewer)]
            assert [answer.status_code for answer in seen] == expected
            for answer in seen:
                if not answer.streaming and answer.content and name not in FRAGMENTS:
                    assert faults(read(answer)) == []


def test_a_stranger_finds_nothing_of_it(things: Things, stranger: Client, subtests: pytest.Subtests) -> None:
    for name, of, *_ in OF_ONE:
        with subtests.test(name):
            path = reverse(name, args=[things[of]])
            answers = [stranger.get(path).status_code]
            answers.append(stranger.post(path, {"name": "mine", "role": "owner"}).status_code)
            assert set(answers) <= {404, 405}
            assert 404 in answers


def test_an_unknown_id_and_a_nul_byte_are_not_found(owner: Client, subtests: pytest.Subtests) -> None:
    for name, *_ in OF_ONE:
        for thing in ("abc_123", "ins_%00"):
            with subtests.test(name, thing=thing):
                path = reverse(name, args=["X"]).replace("X", thing)
                assert {owner.get(path).status_code, owner.post(path, {"role": "viewer"}).status_code} <= {404, 405}


def test_who_is_not_signed_in_is_asked_to(client: Client, db: None) -> None:
    for name, *_rest in PAGES:
        if name in {"help", "theme", "set_language"}:
            continue
        posts = {
            "automatic-top-up",
            "launch-estimate",
            "volume-estimate",
            "member-invite",
            "organization-choose",
            "listings-buy",
            "supplier-connect",
        }
        method = client.post if name in posts else client.get
        answer = method(reverse(name))
        assert (answer.status_code, answer.headers["Location"].split("?")[0]) == (302, reverse("account_login")), name


def test_an_open_page_reloads_itself_when_its_session_is_over(client: Client, db: None) -> None:
    answer = client.get(reverse("home"), headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Refresh"]) == (204, "true")


@pytest.mark.parametrize(
    "name",
    ["account_login", "account_signup", "account_reset_password", "account_reset_password_done", "account_logout",
     "account_email", "account_change_password", "account_email_verification_sent", "account_inactive"],
)  # fmt: skip
def test_the_pages_of_signing_in_are_in_our_frame(client: Client, alice: User, name: str) -> None:
    if name in {"account_logout", "account_email", "account_change_password"}:
        client.force_login(alice)
    answer = client.get(reverse(name))
    assert answer.status_code == 200
    page = read(answer)
    assert faults(page) == []
    assert page.all("link", href="/static/gpumarket/portal.css")


def test_the_sign_in_page_says_in_one_line_what_this_is(client: Client, db: None) -> None:
    page = read(client.get(reverse("account_login")))
    assert "GPUs in seconds, on renewable power, billed by the millisecond." in page.text


def test_a_person_signs_up_and_has_an_organization(client: Client, db: None) -> None:
    answer = client.post(reverse("account_signup"), {"email": "eve@new.example", "password1": "a quiet long river"})
    assert answer.status_code == 302
    page = read(client.get(reverse("home")))
    assert "eve" in page.text
    assert "Nothing is running, nothing is being charged" in page.text


def test_wrong_credentials_say_the_same_for_known_and_unknown_people(client: Client, alice: User) -> None:
    def refused(login: str) -> str:
        page = read(client.post(reverse("account_login"), {"login": login, "password": "wrong"}))
        assert page.value("login") == login
        return page.text.replace(login, "")

    assert refused("alice@acme.example") == refused("nobody@acme.example")


def test_the_menu_of_narrow_windows_is_that_of_wide_ones(owner: Client, viewer: Client) -> None:
    for client, page, sees_invoices in ((owner, "instances", True), (viewer, "market", False)):
        menus = re.findall(r"<nav [^>]*>(.*?)</nav>", client.get(reverse(page)).text, re.DOTALL)[:2]
        assert len(menus) == 2
        assert menus[0] == menus[1]
        assert f'href="{reverse(page)}" aria-current="page"' in menus[0]
        assert (reverse("invoices") in menus[0]) == sees_invoices


def test_who_is_in_no_organization_is_helped(db: None) -> None:
    client = browser(make_person("eve@new.example"))
    page = read(client.get(reverse("home")))
    assert "You are in no organization yet" in page.text
    assert client.get(reverse("instances")).status_code == 404
    client.post(reverse("organization-new"), {"name": "Eve's"})
    assert "Eve's" in read(client.get(reverse("home"))).text


def test_the_chip_says_what_is_spent(owner: Client, running: Instance) -> None:
    page = read(owner.get(reverse("help")))
    assert "$2.49/h now" in page.text
    assert "this month" in page.text


def test_the_theme_is_remembered_and_drawn_by_the_server(owner: Client) -> None:
    answer = owner.post(reverse("theme"), {"theme": "dark", "next": reverse("market")})
    assert answer.headers["Location"] == reverse("market")
    assert read(owner.get(reverse("help"))).all("html", data_bs_theme="dark")
    owner.post(reverse("theme"), {"theme": "no such theme"})
    assert read(owner.get(reverse("help"))).all("html", data_theme="system")


def test_a_form_never_leads_to_another_site(owner: Client) -> None:
    answer = owner.post(reverse("theme"), {"theme": "dark", "next": "https://evil.example/"})
    assert answer.headers["Location"] == reverse("home")


def test_times_are_in_the_readers_zone(owner: Client, running: Instance) -> None:
    page = owner.get(reverse("instance", args=[running.public_id]))
    assert f"{running.created_at:%Y-%m-%d %H:%M}<" in page.content.decode()
    owner.cookies["timezone"] = "Asia%2FTokyo"
    in_tokyo = owner.get(reverse("instance", args=[running.public_id])).content.decode()
    assert f"{running.created_at:%Y-%m-%d %H:%M}<" not in in_tokyo
    owner.cookies["timezone"] = "Nowhere/../etc"
    assert owner.get(reverse("home")).status_code == 200


@pytest.mark.parametrize("name", ["home", "market", "instances", "balance"])
def test_pages_ask_a_fixed_number_of_questions(
    owner: Client, many: list[Instance], django_assert_max_num_queries: Callable[[int], Any], name: str
) -> None:
    most = {"home": 18, "market": 12, "instances": 13, "balance": 22}[name]
    owner.get(reverse(name))
    with django_assert_max_num_queries(most):
        assert owner.get(reverse(name)).status_code == 200


def test_an_instance_asks_a_fixed_number_of_questions(
    owner: Client, running: Instance, django_assert_max_num_queries: Callable[[int], Any]
) -> None:
    path = reverse("instance", args=[running.public_id])
    owner.get(path)
    with django_assert_max_num_queries(17):  # two of them for the decision that placed it
        owner.get(path)
    with django_assert_max_num_queries(10):  # one of them for its volumes
        owner.get(path, headers={"HX-Request": "true"})


@pytest.fixture
def many(rent: Callable[..., Instance], run_until_idle: Callable[[], None], project: Project, fleet: Fleet) -> Any:
    """Twenty instances, of which ten run."""
    Quota.objects.update(limit=100)
    found = [rent(offer=fleet.h200 if number < 10 else fleet.l40s) for number in range(18)]
    run_until_idle()
    for instance in found[:8]:
        Instance.objects.filter(pk=instance.pk).update(phase="stopped")
    found += [rent() for _ in range(2)]
    return found
