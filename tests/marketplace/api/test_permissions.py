"""The table: every route and method, and who gets what there."""

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from django.utils import timezone

from marketplace.models import Organization, Role, User
from marketplace.permissions import SCOPES, VERBS
from tests.conftest import make_organization, make_person, make_token
from tests.marketplace.api.program import Program
from tests.marketplace.api.routes import api_routes, filled, plain, walked
from tests.marketplace.api.tenant import ROLES, Tenant, ssh_key
from tests.outcomes import terms as outcome_terms

ORDER = {"offer": "h200-narvik", "command": ["true"], "project": "{project}"}
BID = ORDER | {"max_price": "0.55"}
INVITATION = {"email": "new@acme.example", "role": "viewer", "organization": "{organization}"}
TOKEN = {"name": "mine", "scopes": ["read"], "organization": "{organization}"}
KEY = {"name": "laptop", "public_key": ssh_key(b"another"), "project": "{project}"}
REGISTRY = {"host": "new.example", "username": "bot", "password": "p", "project": "{project}"}
HOOK = {"url": "https://hooks.example.com/", "organization": "{organization}"}
SINCE = {"since": "2026-01-01T00:00:00Z"}
PROJECT = {"name": "another", "organization": "{organization}"}
NAME = {"name": "n"}
PAY_IN = {"amount": "20.00", "card": "{card}", "organization": "{organization}"}
BY_ITSELF = {"threshold": "10.00", "amount": "20.00", "monthly_ceiling": "100.00"}
EARNED = {"contract": "{shared}", "period": f"{datetime.now(UTC):%Y-%m}", "revenue": "10.50"}
WRONG = {"reason": "It was stopped", "amount": "0.01"}
PAPER = {"legal_name": "Acme AS", "address": "Storgata 1", "country": "NO"}
PROMISE = {
    "kind": "hours", "skus": ["none"], "hours": 5, "starts_at": "2100-01-01T00:00:00Z", "months": 1,
    "organization": "{organization}",
}  # fmt: skip
VOLUME = {"site": "narvik", "name": "n", "size_gib": 1, "project": "{project}"}
LACKS = {"sha256s": ["{artifact}"], "project": "{project}"}
BYTES = {"these": "bytes"}
UNTIL = (timezone.now() + timedelta(days=1)).isoformat()
MORE = {"limit": 99, "reason": "r", "gpu_model": "H200", "project": "{project}"}
BUDGET = {"monthly": "9.00", "hourly": None}
JOBS = {"jobs": [{"offer": "h200-narvik", "command": ["true"]}], "project": "{project}"}
WAIT = ORDER | {"max_price": "9.00", "until": UNTIL}
QUOTE = {
    "offer": "h200-narvik",
    "gpus": 1,
    "starts_at": "{block_start}",
    "ends_at": "{block_end}",
    "project": "{project}",
}
LISTED = {"reservation": "{reservation}", "gpus": 1, "starts_at": "{kept_start}", "ends_at": "{kept_end}", "ask": "1.5"}
TRADE = QUOTE | {"limit": "9"}
WINDOW = "windows?gpus=1&hours=1&before={block_before}"
TERMS = {"terms": outcome_terms()}
CONTRACT = TERMS | {"title": "Frames", "organization": "{organization}"}
LEAVE = {"organization": "{organization}"}
AGREE = {"sha256": "{negotiated_sha256}", "organization": "{organization}"}
CLAIM = {"version": "{draft}", "project": "{project}", "subject": "frame 1"}
WHY = {"reason": "It is black"}
CONTESTED = {"reason": "wrong_result", "text": "It is black"}
SIGNED = {"signature": "0" * 128}
USE = {"instance": "{stopped}", "path": "/data"}

# fmt: off
# method, path, body, the scope it needs (none: anybody may ask), then what is answered to:
#                                                                owner admin billing developer viewer stranger nobody
RULES: list[tuple[str, str, Any, str, int, int, int, int, int, int, int]] = [
    ("get", "me", None, "read",                                     200, 200, 200, 200, 200, 200, 401),
    ("get", "offers", None, "read",                                 200, 200, 200, 200, 200, 200, 401),
    ("get", "offers/{offer}", None, "read",                         200, 200, 200, 200, 200, 200, 401),
    ("get", "sites", None, "read",                                  200, 200, 200, 200, 200, 200, 401),
    ("get", "instances", None, "read",                              200, 200, 200, 200, 200, 200, 401),
    ("get", "instances?project={project}", None, "read",            200, 200, 200, 200, 200, 404, 401),
    ("post", "instances", ORDER, "rent",                            202, 202, 403, 202, 403, 404, 401),
    ("post", "instances?dry_run=true", ORDER, "rent",               200, 200, 403, 200, 403, 404, 401),
    ("get", "instances/{instance}", None, "read",                   200, 200, 200, 200, 200, 404, 401),
    ("patch", "instances/{instance}", NAME, "rent",                 200, 200, 403, 200, 403, 404, 401),
    ("post", "instances/{stopped}/start", None, "rent",             202, 202, 403, 202, 403, 404, 401),
    ("post", "instances/{instance}/stop", None, "rent",             202, 202, 403, 202, 403, 404, 401),
    ("post", "instances/{instance}/terminate", None, "rent",        202, 202, 403, 202, 403, 404, 401),
    ("get", "instances/{instance}/events", None, "read",            200, 200, 200, 200, 200, 404, 401),
    ("get", "instances/{instance}/logs", None, "read",              200, 200, 200, 200, 200, 404, 401),
    ("get", "instances/{instance}/telemetry", None, "read",         200, 200, 200, 200, 200, 404, 401),
    ("get", "instances/{instance}/logs/stream", None, "read",       200, 200, 200, 200, 200, 404, 401),
    ("get", "instances/{instance}/placements", None, "read",        200, 200, 200, 200, 200, 404, 401),
    ("get", "placements/{placement}", None, "read",                 200, 200, 200, 200, 200, 404, 401),
    ("get", "organizations/{organization}/policy", None, "read",    200, 200, 200, 200, 200, 404, 401),
    ("put", "organizations/{organization}/policy", {}, "manage",    200, 200, 403, 403, 403, 404, 401),
    ("get", "projects/{project}/policy", None, "read",              200, 200, 200, 200, 200, 404, 401),
    ("put", "projects/{project}/policy", {}, "manage",              200, 200, 403, 403, 403, 404, 401),
    ("get", "offers/{offer}/spot", None, "read",                    200, 200, 200, 200, 200, 200, 401),
    ("get", "offers/{offer}/spot/history", None, "read",            200, 200, 200, 200, 200, 200, 401),
    ("get", "offers/{offer}/spot/auctions", None, "read",           200, 200, 200, 200, 200, 200, 401),
    ("get", "offers/{offer}/spot/auctions/{auction}", None, "read", 200, 200, 200, 200, 200, 200, 401),
    ("get", "bids", None, "read",                                   200, 200, 200, 200, 200, 200, 401),
    ("get", "bids?project={project}", None, "read",                 200, 200, 200, 200, 200, 404, 401),
    ("post", "bids", BID, "rent",                                   202, 202, 403, 202, 403, 404, 401),
    ("post", "bids?dry_run=true", BID, "rent",                      200, 200, 403, 200, 403, 404, 401),
    ("get", "bids/{bid}", None, "read",                             200, 200, 200, 200, 200, 404, 401),
    ("post", "bids/{bid}/price", {"max_price": "0.60"}, "rent",     200, 200, 403, 200, 403, 404, 401),
    ("post", "bids/{bid}/withdraw", None, "rent",                   202, 202, 403, 202, 403, 404, 401),
    ("get", "instances/{instance}/interruptions", None, "read",     200, 200, 200, 200, 200, 404, 401),
    ("post", "instances/{instance}/simulate-interruption", None, "rent", 409, 409, 403, 409, 403, 404, 401),
    ("post", "artifacts/missing", LACKS, "read",                    200, 200, 200, 200, 200, 404, 401),
    ("get", "artifacts/{artifact}?project={project}", None, "read", 200, 200, 200, 200, 200, 404, 401),
    ("put", "artifacts/{artifact}?project={project}", BYTES, "rent", 200, 200, 403, 200, 403, 404, 401),
    ("get", "volumes", None, "read",                                200, 200, 200, 200, 200, 200, 401),
    ("get", "volumes?project={project}", None, "read",              200, 200, 200, 200, 200, 404, 401),
    ("post", "volumes", VOLUME, "rent",                             202, 202, 403, 202, 403, 404, 401),
    ("get", "volumes/{volume}", None, "read",                       200, 200, 200, 200, 200, 404, 401),
    ("patch", "volumes/{volume}", NAME, "rent",                     200, 200, 403, 200, 403, 404, 401),
    ("delete", "volumes/{volume}", None, "rent",                    202, 202, 403, 202, 403, 404, 401),
    ("post", "volumes/{deleted}/restore", None, "rent",             202, 202, 403, 202, 403, 404, 401),
    ("post", "volumes/{volume}/snapshot", NAME, "rent",             202, 202, 403, 202, 403, 404, 401),
    ("post", "volumes/{volume}/attach", USE, "rent",                202, 202, 403, 202, 403, 404, 401),
    ("post", "volumes/{volume}/detach", None, "rent",               202, 202, 403, 202, 403, 404, 401),
    ("get", WINDOW, None, "read",                                   200, 200, 200, 200, 200, 200, 401),
    ("get", "offers/{offer}/calendar", None, "read",                200, 200, 200, 200, 200, 200, 401),
    ("get", "offers/{offer}/asks", None, "read",                    200, 200, 200, 200, 200, 200, 401),
    ("post", "quotes", QUOTE, "rent",                               201, 201, 403, 201, 403, 404, 401),
    ("get", "quotes/{quote}", None, "read",                         200, 200, 200, 200, 200, 404, 401),
    ("get", "reservations", None, "read",                           200, 200, 200, 200, 200, 200, 401),
    ("get", "reservations?project={project}", None, "read",         200, 200, 200, 200, 200, 404, 401),
    ("post", "reservations", {"quote": "{quote}"}, "rent",          202, 202, 403, 202, 403, 404, 401),
    ("get", "reservations/{reservation}", None, "read",             200, 200, 200, 200, 200, 404, 401),
    ("patch", "reservations/{reservation}", {"is_lent": True}, "rent", 200, 200, 403, 200, 403, 404, 401),
    ("post", "reservations/{reservation}/extend", {"quote": "{extension}"}, "rent", 202, 202, 403, 202, 403, 404, 401),
    ("post", "reservations/{reservation}/cancel", {"quote": "{cancellation}"}, "rent",
     202, 202, 403, 202, 403, 404, 401),
    ("get", "reservations/{reservation}/events", None, "read",      200, 200, 200, 200, 200, 404, 401),
    ("get", "listings", None, "read",                               200, 200, 200, 200, 200, 200, 401),
    ("post", "listings", LISTED, "rent",                            201, 201, 403, 201, 403, 404, 401),
    ("get", "listings/{listing}", None, "read",                     200, 200, 200, 200, 200, 404, 401),
    ("delete", "listings/{listing}", None, "rent",                  200, 200, 403, 200, 403, 404, 401),
    ("get", "trades", None, "read",                                 200, 200, 200, 200, 200, 200, 401),
    ("post", "trades", TRADE, "rent",                               202, 202, 403, 202, 403, 404, 401),
    ("post", "trades?dry_run=true", TRADE, "rent",                  200, 200, 403, 200, 403, 404, 401),
    ("get", "trades/{trade}", None, "read",                         200, 200, 200, 200, 200, 404, 401),
    ("get", "usage", None, "read",                                  200, 200, 200, 200, 200, 200, 401),
    ("get", "usage?organization={organization}", None, "read",      200, 200, 200, 200, 200, 404, 401),
    ("post", "operator/usage", {}, "manage",                        404, 404, 404, 404, 404, 404, 401),
    ("get", "operator/usage-corrections", None, "manage",           404, 404, 404, 404, 404, 404, 401),
    ("post", "operator/usage-corrections", {}, "manage",            404, 404, 404, 404, 404, 404, 401),
    ("post", "operator/usage-corrections/{correction}/approve", {}, "manage", 404, 404, 404, 404, 404, 404, 401),
    ("post", "operator/usage-corrections/{correction}/decline", {}, "manage", 404, 404, 404, 404, 404, 404, 401),
    ("get", "statements", None, "read",                             404, 404, 404, 403, 403, 404, 401),
    ("get", "payouts", None, "read",                                404, 404, 404, 403, 403, 404, 401),
    ("get", "statements/{statement}", None, "read", 200, 200, 200, 403, 403, 404, 401),
    ("get", "statements/{statement}/lines", None, "read", 200, 200, 200, 403, 403, 404, 401),
    ("get", "statements/{statement}/lines.csv", None, "read", 200, 200, 200, 403, 403, 404, 401),
    ("get", "statements/{statement}/pdf", None, "read", 200, 200, 200, 403, 403, 404, 401),
    ("get", "service-levels", None, "read",                         200, 200, 200, 200, 200, 200, 401),
    ("get", "service-levels?organization={organization}", None, "read", 200, 200, 200, 200, 200, 404, 401),
    ("get", "instances/{instance}/sla", None, "read",               200, 200, 200, 200, 200, 404, 401),
    ("get", "instances/{instance}/guarantee", None, "read",         200, 200, 200, 200, 200, 404, 401),
    ("get", "instances/{instance}/guarantee/hours", None, "read",   200, 200, 200, 200, 200, 404, 401),
    ("post", "instances/{instance}/guarantee", {"contract": "{guarantee}"}, "rent", 201, 201, 403, 201, 403, 404, 401),
    ("delete", "instances/{guarded}/guarantee", None, "rent",       200, 200, 403, 200, 403, 404, 401),
    ("get", "revenue/periods", None, "read",                        200, 200, 200, 403, 403, 200, 401),
    ("get", "revenue/periods?organization={organization}", None, "read", 200, 200, 200, 403, 403, 404, 401),
    ("get", "revenue/periods/{period}", None, "read",               200, 200, 200, 403, 403, 404, 401),
    ("post", "revenue/statements", EARNED, "manage",                201, 201, 201, 403, 403, 404, 401),
    ("get", "costs", None, "read",                                  200, 200, 200, 200, 200, 200, 401),
    ("get", "costs?by=day,project&organization={organization}", None, "read", 200, 200, 200, 200, 200, 404, 401),
    ("get", "costs.csv", None, "read",                              200, 200, 200, 200, 200, 200, 401),
    ("get", "keys", None, "",                                       200, 200, 200, 200, 200, 200, 200),
    ("get", "receipts", None, "read",                               200, 200, 200, 200, 200, 200, 401),
    ("get", "receipts/chain", None, "read",                         200, 200, 200, 200, 200, 200, 401),
    ("get", "receipts/head", None, "read",                          200, 200, 200, 200, 200, 200, 401),
    ("get", "receipts/{receipt}", None, "read",                     200, 200, 200, 200, 200, 404, 401),
    ("get", "invoices", None, "read",                               200, 200, 200, 403, 403, 200, 401),
    ("get", "invoices/{invoice}", None, "read",                     200, 200, 200, 403, 403, 404, 401),
    ("get", "invoices/{invoice}/lines", None, "read",               200, 200, 200, 403, 403, 404, 401),
    ("get", "invoices/{invoice}/lines.csv", None, "read",           200, 200, 200, 403, 403, 404, 401),
    ("get", "invoices/{invoice}/pdf", None, "read",                 200, 200, 200, 403, 403, 404, 401),
    ("get", "invoices/{invoice}/proof", None, "read",               200, 200, 200, 403, 403, 404, 401),
    ("post", "invoices/{invoice}/pay", {}, "manage",                409, 409, 409, 403, 403, 404, 401),
    ("get", "invoices/{invoice}/disputes", None, "read",            200, 200, 200, 403, 403, 404, 401),
    ("post", "invoices/{invoice}/disputes", WRONG, "manage",         409, 409, 409, 403, 403, 404, 401),
    ("post", "disputes/{dispute}/withdraw", {}, "manage",           200, 200, 200, 403, 403, 404, 401),
    ("get", "organizations/{organization}/billing-details", None, "read", 200, 200, 200, 403, 403, 404, 401),
    ("put", "organizations/{organization}/billing-details", PAPER, "manage", 200, 200, 200, 403, 403, 404, 401),
    ("get", "commitments", None, "read",                            200, 200, 200, 200, 200, 200, 401),
    ("get", "commitments?organization={organization}", None, "read", 200, 200, 200, 200, 200, 404, 401),
    ("post", "commitments/{commitment}/accept", {}, "manage",       200, 200, 200, 403, 403, 404, 401),
    ("post", "commitments/{commitment}/decline", {}, "manage",      200, 200, 200, 403, 403, 404, 401),
    ("get", "commitment-requests", None, "read",                    200, 200, 200, 200, 200, 200, 401),
    ("get", "commitment-requests?organization={organization}", None, "read", 200, 200, 200, 200, 200, 404, 401),
    ("post", "commitment-requests", PROMISE, "manage",              422, 422, 422, 403, 403, 404, 401),
    ("post", "commitment-requests/{commitment_request}/withdraw", {}, "manage", 200, 200, 200, 403, 403, 404, 401),
    ("get", "cards", None, "read",                                  200, 200, 200, 403, 403, 200, 401),
    ("delete", "cards/{card}", None, "manage",                      204, 204, 204, 403, 403, 404, 401),
    ("get", "payments", None, "read",                               200, 200, 200, 403, 403, 200, 401),
    ("post", "payments", PAY_IN, "manage",                          202, 202, 202, 403, 403, 404, 401),
    ("get", "payments/{payment}", None, "read",                     200, 200, 200, 403, 403, 404, 401),
    ("get", "organizations/{organization}/automatic-top-up", None, "read", 200, 200, 200, 403, 403, 404, 401),
    ("put", "organizations/{organization}/automatic-top-up", BY_ITSELF, "manage", 200, 200, 200, 403, 403, 404, 401),
    ("delete", "organizations/{organization}/automatic-top-up", None, "manage", 204, 204, 204, 403, 403, 404, 401),
    ("get", "balance", None, "read",                                200, 200, 200, 200, 200, 200, 401),
    ("get", "balance?organization={organization}", None, "read",    200, 200, 200, 200, 200, 404, 401),
    ("get", "organizations", None, "read",                          200, 200, 200, 200, 200, 200, 401),
    ("get", "organizations/{organization}", None, "read",           200, 200, 200, 200, 200, 404, 401),
    ("patch", "organizations/{organization}", NAME, "manage",       200, 200, 403, 403, 403, 404, 401),
    ("get", "projects", None, "read",                               200, 200, 200, 200, 200, 200, 401),
    ("post", "projects", PROJECT, "manage",                         201, 201, 403, 403, 403, 404, 401),
    ("get", "projects/{project}", None, "read",                     200, 200, 200, 200, 200, 404, 401),
    ("patch", "projects/{project}", NAME, "manage",                 200, 200, 403, 403, 403, 404, 401),
    ("get", "idle", None, "read",                                   200, 200, 200, 200, 200, 200, 401),
    ("get", "projects/{project}/idle", None, "read",                200, 200, 200, 200, 200, 404, 401),
    ("put", "projects/{project}/idle", {"action": "warn"}, "manage", 200, 200, 403, 403, 403, 404, 401),
    ("get", "quotas", None, "read",                                 200, 200, 200, 200, 200, 200, 401),
    ("get", "quota-requests", None, "read",                         200, 200, 200, 200, 200, 200, 401),
    ("post", "quota-requests", MORE, "manage",                      201, 201, 403, 201, 403, 404, 401),
    ("get", "quota-requests/{request}", None, "read",               200, 200, 200, 200, 200, 404, 401),
    ("post", "quota-requests/{request}/withdraw", None, "manage",   200, 200, 403, 200, 403, 404, 401),
    ("get", "budgets", None, "read",                                200, 200, 200, 200, 200, 200, 401),
    ("get", "budgets?organization={organization}", None, "read",    200, 200, 200, 200, 200, 404, 401),
    ("get", "budgets/{project}", None, "read",                      200, 200, 200, 200, 200, 404, 401),
    ("put", "budgets/{project}", BUDGET, "manage",                  200, 200, 200, 403, 403, 404, 401),
    ("put", "budgets/{organization}", BUDGET, "manage",             200, 200, 200, 403, 403, 404, 401),
    ("put", "budgets/{token}", BUDGET, "manage",                    200, 200, 404, 403, 403, 404, 401),
    ("get", "waits", None, "read",                                  200, 200, 200, 200, 200, 200, 401),
    ("get", "waits?project={project}", None, "read",                200, 200, 200, 200, 200, 404, 401),
    ("post", "waits", WAIT, "rent",                                 202, 202, 403, 202, 403, 404, 401),
    ("get", "waits/outlook?offer=h200-narvik&project={project}", None, "read", 200, 200, 200, 200, 200, 404, 401),
    ("get", "waits/{wait}", None, "read",                           200, 200, 200, 200, 200, 404, 401),
    ("post", "waits/{wait}/cancel", None, "rent",                   200, 200, 403, 200, 403, 404, 401),
    ("get", "jobs", None, "read",                                   200, 200, 200, 200, 200, 200, 401),
    ("get", "jobs?project={project}", None, "read",                 200, 200, 200, 200, 200, 404, 401),
    ("get", "jobs/schema", None, "read",                            200, 200, 200, 200, 200, 200, 401),
    ("post", "jobs", JOBS, "rent",                                  201, 201, 403, 201, 403, 404, 401),
    ("get", "jobs/{job}", None, "read",                             200, 200, 200, 200, 200, 404, 401),
    ("post", "jobs/{job}/cancel", None, "rent",                     200, 200, 403, 200, 403, 404, 401),
    ("get", "jobs/{job}/outputs", None, "read",                     200, 200, 200, 200, 200, 404, 401),
    ("get", "jobs/{job}/tasks", None, "read",                       200, 200, 200, 200, 200, 404, 401),
    ("get", "jobs/{job}/tasks/{task}", None, "read",                200, 200, 200, 200, 200, 404, 401),
    ("get", "jobs/{job}/tasks/{task}/logs", None, "read",           200, 200, 200, 200, 200, 404, 401),
    ("get", "memberships", None, "read",                            200, 200, 200, 200, 200, 200, 401),
    ("get", "memberships/{member}", None, "read",                   200, 200, 200, 200, 200, 404, 401),
    ("patch", "memberships/{member}", {"role": "billing"}, "manage", 200, 200, 403, 403, 403, 404, 401),
    ("patch", "memberships/{member}", {"role": "owner"}, "manage",  200, 403, 403, 403, 403, 404, 401),
    ("delete", "memberships/{member}", None, "manage",              204, 204, 403, 403, 403, 404, 401),
    ("get", "invitations", None, "manage",                          200, 200, 403, 403, 403, 200, 401),
    ("post", "invitations", INVITATION, "manage",                   201, 201, 403, 403, 403, 404, 401),
    ("delete", "invitations/{invitation}", None, "manage",          204, 204, 403, 403, 403, 404, 401),
    ("get", "tokens", None, "read",                                 200, 200, 200, 200, 200, 200, 401),
    ("post", "tokens", TOKEN, "manage",                             201, 201, 201, 201, 201, 404, 401),
    ("delete", "tokens/{token}", None, "manage",                    204, 204, 404, 404, 404, 404, 401),
    ("get", "ssh-keys", None, "read",                               200, 200, 200, 200, 200, 200, 401),
    ("post", "ssh-keys", KEY, "rent",                               201, 201, 403, 201, 403, 404, 401),
    ("delete", "ssh-keys/{key}", None, "rent",                      204, 204, 403, 204, 403, 404, 401),
    ("get", "registries", None, "read",                             200, 200, 200, 200, 200, 200, 401),
    ("post", "registries", REGISTRY, "rent",                        201, 201, 403, 201, 403, 404, 401),
    ("delete", "registries/{registry}", None, "rent",               204, 204, 403, 204, 403, 404, 401),
    ("get", "contracts", None, "read",                              200, 200, 200, 200, 200, 200, 401),
    ("post", "contracts", CONTRACT, "manage",                       409, 409, 403, 403, 403, 404, 401),
    ("get", "contracts/{negotiated}", None, "read",                 200, 200, 200, 200, 200, 404, 401),
    ("post", "contracts/{contract}/versions", TERMS, "manage",      201, 201, 403, 403, 403, 404, 401),
    ("post", "contracts/{draft}/offer", None, "manage",             200, 200, 403, 403, 403, 404, 401),
    ("post", "contracts/{draft}/withdraw", None, "manage",          200, 200, 403, 403, 403, 404, 401),
    ("post", "contracts/{negotiated}/accept", AGREE, "manage",      200, 200, 403, 403, 403, 404, 401),
    ("post", "contracts/{agreed}/leave", LEAVE, "manage",           200, 200, 403, 403, 403, 404, 401),
    ("get", "claims", None, "read",                                 200, 200, 200, 200, 200, 200, 401),
    ("get", "claims?project={project}", None, "read",               200, 200, 200, 200, 200, 404, 401),
    ("post", "claims", CLAIM, "manage",                             404, 404, 403, 403, 403, 404, 401),
    ("get", "claims/{claim}", None, "read",                         200, 200, 200, 200, 200, 404, 401),
    ("get", "claims/{claim}/events", None, "read",                  200, 200, 200, 200, 200, 404, 401),
    ("post", "claims/{claim}/accept", None, "rent",                 200, 200, 403, 200, 403, 404, 401),
    ("post", "claims/{claim}/reject", WHY, "rent",                  200, 200, 403, 200, 403, 404, 401),
    ("post", "claims/{verified}/disputes", CONTESTED, "rent",       200, 200, 403, 200, 403, 404, 401),
    ("post", "claims/{sold}/reverse", WHY, "manage",                409, 409, 403, 403, 403, 404, 401),
    ("post", "claims/{sold}/void", WHY, "manage",                   200, 200, 403, 403, 403, 404, 401),
    ("post", "claims/{claim}/verdicts", SIGNED | {"result": "pass", "run": 1}, "read",
     404, 404, 404, 404, 404, 404, 401),
    ("get", "claim-disputes", None, "read",                         200, 200, 200, 200, 200, 200, 401),
    ("get", "claim-disputes/{claimdispute}", None, "read",          200, 200, 200, 200, 200, 404, 401),
    ("post", "claim-disputes/{claimdispute}/answers", {"text": "t"}, "rent", 200, 200, 403, 200, 403, 404, 401),
    ("post", "claim-disputes/{claimdispute}/withdraw", None, "rent", 200, 200, 403, 200, 403, 404, 401),
    ("post", "claim-disputes/{claimdispute}/decision", SIGNED | {"due_bps": 0}, "read",
     404, 404, 404, 404, 404, 404, 401),
    ("get", "events", None, "read",                                 200, 200, 200, 200, 200, 200, 401),
    ("get", "webhooks", None, "manage",                             200, 200, 403, 403, 403, 200, 401),
    ("post", "webhooks", HOOK, "manage",                            201, 201, 403, 403, 403, 404, 401),
    ("get", "webhooks/{webhook}", None, "manage",                   200, 200, 403, 403, 403, 404, 401),
    ("patch", "webhooks/{webhook}", {"description": "d"}, "manage", 200, 200, 403, 403, 403, 404, 401),
    ("post", "webhooks/{webhook}/rotate", None, "manage",           200, 200, 403, 403, 403, 404, 401),
    ("post", "webhooks/{webhook}/test", None, "manage",             202, 202, 403, 403, 403, 404, 401),
    ("post", "webhooks/{webhook}/replay", SINCE, "manage",          202, 202, 403, 403, 403, 404, 401),
    ("get", "webhooks/{webhook}/deliveries", None, "manage",        200, 200, 403, 403, 403, 404, 401),
    ("post", "webhook-deliveries/{delivery}/resend", None, "manage", 202, 202, 403, 403, 403, 404, 401),
    ("delete", "webhooks/{webhook}", None, "manage",                204, 204, 403, 403, 403, 404, 401),
    ("get", "audit", None, "manage",                                200, 200, 403, 403, 403, 200, 401),
]

# Routes outside of the API, and who may enter. A row that ends with `*` stands for all that begins so.
EVERYBODY, PEOPLE, MANAGERS, NODES = "everybody", "people who signed in", "capacity managers", "nodes with their key"
PROCESSOR = "the card processor with its signature"
OTHERS = {
    EVERYBODY: ["livez", "readyz", "language", "theme", "api/schema", "api/docs", "api/problems", "^api(?:/|$)",
                "accounts/*", "back-office/logout/", "help", "invitations/<str:secret>"],
    PROCESSOR: ["webhooks/stripe"],
    NODES: ["agent/v1/join", "agent/v1/sync", "agent/v1/secrets", "agent/v1/artifacts/missing",
            "agent/v1/artifacts/<slug:sha256>"],
    MANAGERS: ["console/*", "back-office/*"],
    PEOPLE: ["reservations", "reservations/hours", "reservations/<str:reservation_id>",
             "reservations/<str:reservation_id>/extend", "reservations/<str:reservation_id>/cancel",
             "reservations/<str:reservation_id>/lend", "reservations/<str:reservation_id>/sell",
             "quotes/<str:quote_id>", "listings", "listings/buy", "listings/<str:listing_id>/withdraw",
             "", "quotas", "quotas/requests/<str:request_id>/withdraw", "budgets", "budgets/<str:owner_id>", "waits",
             "waits/<str:entry_id>/cancel", "jobs", "jobs/new", "jobs/<str:job_id>", "jobs/<str:job_id>/cancel",
             "jobs/<str:job_id>/tasks/<int:index>",
             "spending", "market", "launch", "launch/estimate", "instances", "instances/<str:instance_id>",
             "instances/<str:instance_id>/log", "instances/<str:instance_id>/log.txt",
             "instances/<str:instance_id>/telemetry",
             "instances/<str:instance_id>/interrupt", "spot/<slug:offer_id>",
             "spot/<slug:offer_id>/auctions/<str:auction_id>", "bids", "bids/<str:bid_id>",
             "bids/<str:bid_id>/withdraw",
             "instances/<str:instance_id>/start", "instances/<str:instance_id>/stop",
             "instances/<str:instance_id>/terminate", "instances/<str:instance_id>/rename", "balance", "invoices",
             "receipts", "receipts/all.jsonl", "receipts/<str:receipt_id>", "receipts/<str:receipt_id>/file",
             "commitments", "commitments/<str:commitment_id>/accept", "commitments/<str:commitment_id>/refuse",
             "commitment-requests/<str:request_id>/withdraw",
             "supplier", "supplier/nodes", "supplier/statements", "supplier/statements/<str:statement_id>",
             "supplier/statements/<str:statement_id>/pdf", "supplier/statements/<str:statement_id>/lines.csv",
             "supplier/payouts", "supplier/connect", "service-levels", "instances/<str:instance_id>/sla",
             "instances/<str:instance_id>/guarantee", "revenue", "revenue/<str:period_id>",
             "balance/costs.csv", "balance/costs.json", "usage", "usage/<str:span_id>",
             "invoices/<str:invoice_id>", "invoices/<str:invoice_id>/pdf", "invoices/<str:invoice_id>/lines.csv",
             "payment-methods", "payment-methods/add", "payment-methods/<str:card_id>/remove", "top-up",
             "top-up/automatic", "payments/<str:payment_id>", "payments/<str:payment_id>/continue",
             "payments/<str:payment_id>/cancel",
             "invoices/<str:invoice_id>/pay", "invoices/<str:invoice_id>/dispute", "disputes/<str:dispute_id>/withdraw",
             "billing-details", "tokens",
             "tokens/<str:token_id>/revoke", "ssh-keys", "ssh-keys/<str:key_id>/remove", "registries",
             "registries/<str:registry_id>/remove", "events", "webhooks", "webhooks/<str:webhook_id>",
             "webhooks/<str:webhook_id>/rotate", "webhooks/<str:webhook_id>/test",
             "webhooks/<str:webhook_id>/replay", "webhooks/<str:webhook_id>/remove",
             "webhook-deliveries/<str:delivery_id>/resend", "members",
             "members/<str:member_id>/role", "members/<str:member_id>/remove", "invitations",
             "invitations/<str:invitation_id>/revoke", "projects", "projects/<str:project_id>", "audit",
             "projects/<str:project_id>/idle",
             "placements/<str:placement_id>", "policies",
             "outcomes", "outcomes/<str:version_id>", "claims", "claims/<str:claim_id>",
             "claims/<str:claim_id>/accept", "claims/<str:claim_id>/reject", "claims/<str:claim_id>/dispute",
             "claims/<str:claim_id>/reverse", "claims/<str:claim_id>/void", "claim-disputes",
             "claim-disputes/<str:dispute_id>/answer", "claim-disputes/<str:dispute_id>/withdraw",
             "organizations/choose", "organizations/new", "organizations/rename", "volumes", "volumes/new",
             "volumes/estimate", "volumes/<str:volume_id>", "volumes/<str:volume_id>/delete",
             "volumes/<str:volume_id>/restore", "volumes/<str:volume_id>/snapshot",
             "volumes/<str:volume_id>/resize", "volumes/<str:volume_id>/attach",
             "volumes/<str:volume_id>/detach", "volumes/<str:volume_id>/rename"],
}
# fmt: on


@pytest.fixture
def stranger(db: None) -> Program:
    user = make_person("owner@other.example")
    return Program(make_token(user, make_organization("Other", user)))


def status(program: Program, method: str, path: str, body: Any, ids: dict[str, str]) -> int:
    """Ask, undo what it did, and return the answer's status."""
    with transaction.atomic():
        answer = program.ask(method, filled(path, ids), filled(body, ids), key="a key")
        transaction.set_rollback(True)
    return int(answer.status_code)


def test_every_route_and_method_of_the_api_has_a_row() -> None:
    assert {(method, plain(path)) for method, path in api_routes()} == {(rule[0], plain(rule[1])) for rule in RULES}


def test_every_route_answers_each_role_as_its_row_says(whole: Tenant, stranger: Program) -> None:
    askers = [*(whole.programs[role] for role in ROLES), stranger, Program()]
    wrong = []
    for method, path, body, _, *expected in RULES:
        answered = [status(asker, method, path, body, whole.ids) for asker in askers]
        if answered != expected:
            wrong.append(f"{method} {path}: {answered} instead of {expected}")
    assert wrong == []


def test_a_token_needs_the_scope_of_its_row_and_no_other(whole: Tenant) -> None:
    owner, organization = whole.people["owner"], whole.organization
    with_only = {scope: Program(make_token(owner, organization, scopes=(scope,))) for scope in SCOPES}
    wrong = []
    for method, path, body, scope, expected, *_ in RULES:
        # What a token makes has no more scopes than the token itself.
        asked = {**body, "scopes": [scope]} if body is TOKEN else body
        answered = {name: status(asker, method, path, asked, whole.ids) for name, asker in with_only.items()}
        if answered != {name: expected if scope in {name, ""} else 403 for name in SCOPES}:
            wrong.append(f"{method} {path}: {answered} although it needs {scope}")
    assert wrong == []


def test_a_method_without_a_row_is_refused(whole: Tenant) -> None:
    allowed = {(method, plain(path)) for method, path in api_routes()}
    wrong = []
    for form, path in {plain(path): path for _, path, *_ in RULES}.items():
        for method in ("get", "post", "put", "patch", "delete", "options", "trace"):
            if (method, form) not in allowed:
                answered = status(whole.programs["owner"], method, path.partition("?")[0], {}, whole.ids)
                if answered != 405:
                    wrong.append(f"{method} {path}: {answered}")
    assert wrong == []


def others() -> Iterator[str]:
    return (path for path, _ in walked() if not path.startswith("api/v1/"))


def who_may_enter(path: str) -> str | None:
    forms = {path, path.partition("/")[0] + "/*"}
    return next((who for who, rows in OTHERS.items() if forms.intersection(rows)), None)


def test_every_route_outside_of_the_api_says_who_may_enter() -> None:
    assert [path for path in others() if who_may_enter(path) is None] == []


def test_no_row_is_left_of_a_route_that_is_gone() -> None:
    forms = set(others()) | {path.partition("/")[0] + "/*" for path in others()}
    assert [row for rows in OTHERS.values() for row in rows if row not in forms] == []


def address(path: str) -> str:
    """Return an address that a route takes."""
    bare = re.sub(r"<[^>]+>|\(\?P<\w+>[^)]*\)", "abc_123", path)
    return "/" + re.sub(r"[\^$\\]", "", bare)


def is_refused(answer: Any) -> bool:
    """Whether a page was not shown: sent to the sign-in page, not found, forbidden, or not for this method."""
    asks_to_sign_in = answer.status_code == 302 and "login" in answer.headers["Location"]
    return asks_to_sign_in or answer.status_code in {401, 403, 404, 405, 422}


@pytest.mark.parametrize("method", ["get", "post"])
def test_whoever_is_not_signed_in_sees_only_what_everybody_may(db: None, method: str) -> None:
    client, seen = Client(), []
    for path in others():
        if who_may_enter(path) in {PEOPLE, MANAGERS}:
            answer = client.generic(method.upper(), address(path), b"{}", "application/json")
            if not is_refused(answer):
                seen.append(f"{path}: {answer.status_code}")
    assert seen == []


def test_whoever_is_no_capacity_manager_sees_nothing_of_theirs(client: Client, alice: User, acme: Organization) -> None:
    client.force_login(alice)
    seen = []
    for path in others():
        # Of each thing in the back office its list is enough: one door leads to all of it.
        if who_may_enter(path) == MANAGERS and not (path.startswith("back-office") and "<" in path):
            answer = client.get(address(path))
            if not is_refused(answer):
                seen.append(f"{path}: {answer.status_code}")
    assert seen == []


def test_the_pages_of_everybody_are_open_to_everybody(client: Client, db: None) -> None:
    for path in ("livez", "readyz", "api/schema", "api/docs", "api/problems", "help", "accounts/login/"):
        assert client.get(f"/{path}").status_code == 200, path


def verbs_asked(module: ast.Module) -> Iterator[str]:
    """Yield what looks like a verb in a call, except where the audit is told of one."""
    for call in ast.walk(module):
        if isinstance(call, ast.Call) and not ast.unparse(call.func).endswith(("record", "_record")):
            for given in [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "verb")]:
                if isinstance(given, ast.Constant) and re.fullmatch(r"[a-z_]+\.(view|change|create)", str(given.value)):
                    yield given.value


def test_every_verb_of_the_table_is_asked_for_and_every_verb_asked_for_is_in_the_table() -> None:
    root = Path(__file__).resolve().parents[3] / "marketplace"
    asked = {verb for path in root.rglob("*.py") for verb in verbs_asked(ast.parse(path.read_text()))}
    assert asked == set(VERBS)


def test_every_role_and_scope_of_the_table_is_known() -> None:
    for roles, scope in VERBS.values():
        assert roles <= set(Role)
        assert scope in SCOPES
