"""A seller of outcomes in a test: terms, a contract that a customer accepted, and results that are claimed."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from django.db.models import F
from django.utils import timezone

from billing.models import PriceVersion
from billing.outcomes import escrows
from marketplace.access import Actor, person
from marketplace.contracts import claims, filing, offering
from marketplace.contracts import terms as written
from marketplace.models import (
    Attempt,
    Claim,
    ContractVersion,
    Job,
    Membership,
    Offer,
    Organization,
    Project,
    Task,
    User,
)
from provisioning.agent import manifest
from provisioning.agent.manifest import Entry
from provisioning.models import Instance
from tests.conftest import make_organization, make_person
from tests.nodes import keep_folder

CENT = 10_000
PRICE = 50 * CENT

# What an ordinary product says; tests name what differs.
TERMS: Mapping[str, Any] = {
    "schema": "gpumarket.terms/3",
    "kind": "per_task",
    "currency": "USD",
    "counts": "A task counts once its command ended with exit code 0 and all its outputs are there.",
    "unit": {"name": "task", "per": 1, "price_micros": PRICE, "most": 1},
    "measured": None,
    "verifier": {"kind": "outputs"},
    "evidence": ["exit_code", "outputs"],
    "acceptance": {"window_s": 3600, "on_silence": "accept"},
    "disputes": {
        "window_s": 1800, "decided_by": "operator", "arbiter": None, "decide_within_s": 7200, "if_undecided": "refund",
    },
    "retries": 1,
    "work": {
        "offers": None, "gpus": 64, "seconds": 86_400, "attempts": 20, "attempt_micros": 5_000_000_000,
        "unpaid_micros": 10_000_000_000,
    },
    "deadline": None,
    "cap": None,
    "floor": None,
    "clawback_s": 86_400,
    "shares": [{"to": "seller", "bps": 8000}, {"to": "platform", "bps": 2000}],
    "guarantee": None,
    "revenue": None,
}  # fmt: skip
# What a task leaves that is to succeed, and the digest of the folder.
LEFT = {"out/result": b"42"}
WHOLE = manifest.digest(
    manifest.written(Entry(path, sha256(data).hexdigest(), len(data), 0o644) for path, data in LEFT.items())
)
SELLERS_ALONE = [{"to": "seller", "bps": 10_000}]
# What a seller files for a result outside of jobs, by these terms.
FILED: Mapping[str, Any] = {"exit_code": 0, "outputs": "f" * 64}
BY_CUSTOMER = {"verifier": {"kind": "customer"}}


def terms(**differs: Any) -> dict[str, Any]:
    """Return ordinary terms but for what differs; a mapping differs in the fields that it names."""
    made = deepcopy(dict(TERMS))
    if differs.get("kind") in ("guarantee", "revenue_share"):
        made["work"] = None
    for name, value in differs.items():
        is_part = isinstance(value, dict) and isinstance(made.get(name), dict) and "kind" not in value
        made[name] = {**made[name], **value} if is_part else value
    return made


@dataclass
class Deal:
    """A contract between a seller and a customer, who accepted it."""

    seller: Organization
    merchant: Actor
    version: ContractVersion

    def claim(self, project: Project, subject: str, *, at: datetime | None = None, **order: Any) -> Claim:
        """Claim a result outside of jobs, with the evidence that its terms name beside what a test says."""
        wanted = {"units": 1, "evidence": {"result": subject}} | order
        wanted["evidence"] = FILED | wanted["evidence"]
        return filing.file(
            actor=self.merchant, version=self.version, project=project, subject=subject, at=at or timezone.now(),
            **wanted,
        )  # fmt: skip


def make_seller(name: str = "Results AS") -> tuple[Organization, Actor]:
    """Return an organization that sells, and its owner."""
    slug = name.lower().replace(" ", "-")
    owner: User = make_person(f"owner@{slug}.example")
    seller = make_organization(name, owner, credit_micros=0)
    Organization.objects.filter(pk=seller.pk).update(is_supplier=True)
    seller.refresh_from_db()
    return seller, person(owner, "req_seller")


def put_up(version: ContractVersion, merchant: Actor, *, at: datetime) -> None:
    """Let a seller offer a version, and a capacity manager approve it."""
    offering.offer(actor=merchant, version=version, at=at)
    offering.approve(actor=merchant, version=version, at=at)


def make_deal(customer: Organization, *, title: str = "Rendered frames", command: Any = (), **differs: Any) -> Deal:
    """Sell something in the catalogue, and let a customer accept it."""
    seller, merchant = make_seller(f"Seller {Organization.objects.count()}")
    at = timezone.now()
    version = offering.draft(actor=merchant, seller=seller, title=title, terms=terms(**differs), at=at)
    put_up(version, merchant, at=at)
    accept(customer, version, command=command)
    return Deal(seller, merchant, version)


def accept(customer: Organization, version: ContractVersion, *, command: Any = ()) -> None:
    """Let the owner of a customer agree to a version."""
    owner = Membership.objects.filter(organization=customer, role="owner").select_related("user").order_by("pk")[0].user
    offering.accept(
        actor=person(owner, "req_customer"), version=version, organization=customer, sha256=version.sha256,
        at=timezone.now(), check_command=command,
        third_parties=[party["public_key"] for party in written.of(version.terms).third_parties],
    )  # fmt: skip


@dataclass
class Work:
    """A job under a contract whose tasks a test ends as it likes, without nodes."""

    deal: Deal
    project: Project
    offer: Offer
    actor: Actor
    job: Job

    def task(self, index: int) -> Task:
        return Task.objects.select_related("job__project__organization").get(job=self.job, index=index)

    def succeeds(self, index: int, *, outputs: str = WHOLE, exit_code: int = 0, at: datetime | None = None) -> Task:
        """End an attempt at a task well, so that its result may be claimed."""
        at, task = at or timezone.now(), self.task(index)
        task.tries.filter(state="succeeded").update(state="refused")
        if outputs == WHOLE:
            assert keep_folder(self.project.pk, LEFT) == WHOLE
        self._attempt(task, at, "succeeded", outputs=outputs, exit_code=exit_code)
        self.moves(task, "verifying", at)
        return task

    def loses_its_node(self, index: int, *, at: datetime) -> None:
        """End an attempt by a fault of ours, which leaves the task as it was."""
        self._attempt(self.task(index), at, "faulted", outputs="", exit_code=None)

    def _attempt(self, task: Task, at: datetime, state: str, *, outputs: str, exit_code: int | None) -> None:
        instance = Instance.objects.create(
            project=self.project, offer=self.offer, price_version=PriceVersion.objects.get(sku=self.offer.sku),
            name=f"t-{task.pk}-{task.attempts}", replicas=1, gpus_per_replica=1, command=["true"], phase="terminated",
            desired="terminated", outputs=self.job.spec["outputs"], outputs_sha256=outputs, paid_by=self.job.public_id,
        )  # fmt: skip
        Attempt.objects.create(
            task=task, job=self.job, number=task.attempts + 1, instance=instance, state=state, exit_code=exit_code,
            outputs_sha256=outputs, created_at=at, began_at=at, ended_at=at,
        )  # fmt: skip
        faults = {"faults": task.faults + 1} if state == "faulted" else {}
        Task.objects.filter(pk=task.pk).update(attempts=task.attempts + 1, **faults)

    def moves(self, task: Task, state: str, at: datetime) -> None:
        """Move a task, and the counts of its job with it."""
        old = Task.objects.get(pk=task.pk).state
        if old == state:
            return
        Task.objects.filter(pk=task.pk).update(state=state, state_since=at)
        Job.objects.filter(pk=self.job.pk).update(**{old: F(old) - 1, state: F(state) + 1})

    def ends(self, at: datetime) -> None:
        """End the job: what has not been tried never will be, and what is verified has succeeded."""
        for task in Task.objects.filter(job=self.job, state__in=["pending", "running", "verifying"]):
            has_claim = Claim.objects.filter(task=task).exists()
            self.moves(task, "succeeded" if has_claim else "cancelled", at)
        Job.objects.filter(pk=self.job.pk).update(state="cancelled", ended_at=at)


def make_work(deal: Deal, project: Project, offer: Offer, actor: Actor, *, tasks: int, at: datetime) -> Work:
    """Submit a job under a contract: its worst case is set aside."""
    bound = claims.check(version_id=deal.version.public_id, organization=project.organization, tasks=tasks)
    job = Job.objects.create(
        project=project, user=actor.user, offer=offer, name="work", spec={"outputs": ["out"]}, spec_sha256="0" * 64,
        contract=deal.version.public_id, gpus=1, size=tasks, pending=tasks, created_at=at, state_since=at,
    )  # fmt: skip
    Task.objects.bulk_create(Task(job=job, index=index, state_since=at) for index in range(tasks))
    escrows.escrow(
        organization=project.organization, resource_id=job.public_id, amount_micros=bound.most_micros,
        version=deal.version.public_id, reason="work", at=at,
    )  # fmt: skip
    return Work(deal, project, offer, actor, job)
