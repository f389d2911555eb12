"""A fleet and customers of any size, written by SQL: what years of operation would leave, in seconds.

The rows are what the product's own verbs write, checked by the database's
constraints as always; customers are few and made by the verbs themselves.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db import connection
from django.db.models import Count, Min
from django.utils import timezone

from billing import books, credits, prices
from marketplace import tenants, tokens
from marketplace.access import person
from marketplace.models import IdempotencyRecord, Offer, Organization, Project, User
from marketplace.permissions import SCOPES
from provisioning import quotas
from provisioning.models import Assignment, Fabric, Instance, Node, Site

GPUS_PER_NODE = 8
NODES_PER_RACK = 8
NODES_PER_FABRIC = 512
SITES = ("narvik", "teesside", "osaka", "virginia")
MODELS = (("GB300", 6_200_000), ("H200", 2_490_000), ("L40S", 890_000))
CREDIT_MICROS = 10**9 * 10**6
QUOTA_GPUS = 10**9

NODES = """
INSERT INTO provisioning_node (public_id, name, fabric_id, offer_id, rack, gpu_model, gpu_count, gpu_memory_mib,
    free_mask, nvlink_groups, is_held, state, state_reason, reachability, driver, key_hash,
    desired_generation, changed, created_at, joined_at)
SELECT 'nod_' || left(translate(md5((%(from)s + n)::text), '0189', 'wxyz'), 20), 'node-' || (%(from)s + n),
    %(fabric)s, %(offer)s, 'r' || n / %(per_rack)s, %(model)s, %(gpus)s, 144384, (1 << %(gpus)s) - 1, '[]', false,
    'available', '', 'online', 'agent',
    encode(sha256(convert_to('key of node-' || (%(from)s + n), 'UTF8')), 'hex'), 1, 0, now(), now()
FROM generate_series(0, %(count)s - 1) AS n
"""
GPUS = """
INSERT INTO provisioning_gpu (public_id, node_id, uuid, index, memory_mib, healthy, state, state_reason,
    facts)
SELECT 'gpu_' || left(translate(md5(node.id || '-' || i), '0189', 'wxyz'), 20), node.id,
    'GPU-' || node.name || '-' || i, i, 144384, true, 'clean', '', '{}'
FROM provisioning_node node, generate_series(0, %(gpus)s - 1) AS i
WHERE NOT EXISTS (SELECT FROM provisioning_gpu gpu WHERE gpu.node_id = node.id)
"""
HEARTBEATS = """
INSERT INTO provisioning_heartbeat (node_id, boot_id, agent_epoch, seq, last_seen, hostname, agent_version, runtime,
    gpu_source, inventory_generation, telemetry, energy, events_seen, access, stray_volumes,
    encrypts)
SELECT id, 'boot', 1, 1, now(), name, '1', 'process', 'simulated', 1, '[]', '[]', 0, '{}', '[]', false
FROM provisioning_node node
WHERE NOT EXISTS (SELECT FROM provisioning_heartbeat beat WHERE beat.node_id = node.id)
"""


# One instance over all GPUs of a node, as it stands after its start; a sweep that looks finds nothing odd.
INSTANCES = """
INSERT INTO provisioning_instance (public_id, project_id, offer_id, price_version_id, name, market, replicas,
    gpus_per_replica, image, command, env, ports, lease, on_failure, placement, attach, desired, phase,
    phase_since, health, reason, message, retryable, restarts, run, quota_held, generation, observed_generation,
    created_at, ready_at,
    inputs, outputs, checkpoint, checkpoint_sha256, outputs_sha256, has_network, avoid_nodes, paid_by)
SELECT 'ins_' || left(translate(md5(node.id::text), '0189', 'wxyz'), 20), %(project)s, node.offer_id, price.id,
    node.name, 'on_demand', 1, node.gpu_count, '', '["sleep", "1000"]', '{}', '[]', 'sticky', 'stop', '{}', 'auto',
    'running', 'running', now(), 'healthy', '', '', false, 0, 1, node.gpu_count, 1, 1, now(), now(),
    '', '[]', '', '', '', true, '[]', ''
FROM provisioning_node node
JOIN marketplace_offer offer ON offer.id = node.offer_id
JOIN billing_priceversion price ON price.sku = offer.public_id || '/on_demand'
WHERE node.id %% 1000 < %(share)s * 1000
"""
ASSIGNMENTS = """
INSERT INTO provisioning_assignment (public_id, instance_id, node_id, replica, fence, gpu_uuids, desired, observed,
    message, log_bytes, ports, created_at)
SELECT 'asg_' || substr(instance.public_id, 5), instance.id, node.id, 0, 1,
    (SELECT jsonb_agg(uuid ORDER BY index) FROM provisioning_gpu WHERE node_id = node.id), 'running', 'running',
    '', 0, '{}', now()
FROM provisioning_instance instance JOIN provisioning_node node ON node.name = instance.name
"""
HOLDS = """
INSERT INTO provisioning_gpuhold (gpu_id, assignment_id, taken_at)
SELECT gpu.id, assignment.id, now()
FROM provisioning_assignment assignment JOIN provisioning_gpu gpu ON gpu.node_id = assignment.node_id
"""
WORKFLOWS = """
INSERT INTO provisioning_workflow (instance_id, step, step_since, due_at, failures, last_error)
SELECT id, 'watch', now(), now() + interval '1 hour', 0, '' FROM provisioning_instance
"""


@dataclass(frozen=True)
class Customers:
    """Who rents: one token for each organization."""

    tokens: list[str]
    projects: list[int]


def make_customers(count: int) -> Customers:
    """Make organizations that never run out of credit or quota."""
    at = timezone.now()
    secrets, projects = [], []
    for number in range(count):
        user = User.objects.create(email=f"developer-{number}@example.com")
        organization = tenants.found_organization(owner=user, name=f"Customer {number}")
        credits.grant(
            organization=organization, amount_micros=CREDIT_MICROS, key=f"bench {number}", reason="x", by="x", at=at
        )
        project = Project.objects.get(organization=organization)
        quotas.set_limit(project_id=project.pk, limit=QUOTA_GPUS)
        quotas.set_limit(organization_id=organization.pk, limit=QUOTA_GPUS)
        _, secret = tokens.create_token(
            actor=person(user), organization=organization, name="bench", scopes=SCOPES, at=at
        )
        secrets.append(secret)
        projects.append(project.pk)
    return Customers(tokens=secrets, projects=projects)


def make_offers() -> list[Offer]:
    """Make every model's offer in every site."""
    at = timezone.now()
    user = User.objects.create(email="operator@example.com")
    operator = tenants.found_organization(owner=user, name="Operator", is_supplier=True)
    sites = [
        Site.objects.create(
            slug=slug, name=slug.title(), city=slug.title(), country="NO", jurisdiction="NO", grid_zone="NO4",
            latitude=Decimal(60), longitude=Decimal(10), power_source="hydro", pue=Decimal("1.1"),
        )
        for slug in SITES
    ]  # fmt: skip
    return [_offer(operator, site, model, micros, at) for model, micros in MODELS for site in sites]


def make_offer(*, price_micros: int) -> Offer:
    """Make one offer in one site."""
    user = User.objects.create(email="operator@example.com")
    operator = tenants.found_organization(owner=user, name="Operator", is_supplier=True)
    site = Site.objects.create(
        slug="narvik", name="Narvik", city="Narvik", country="NO", jurisdiction="NO", grid_zone="NO4",
        latitude=Decimal(60), longitude=Decimal(10), power_source="hydro", pue=Decimal("1.1"),
    )  # fmt: skip
    return _offer(operator, site, "H200", price_micros, timezone.now())


def _offer(operator: Organization, site: Site, model: str, micros: int, at: object) -> Offer:
    offer = Offer.objects.create(
        slug=f"{model.lower()}-{site.slug}", name=f"{model} in {site.name}", supplier=operator, site=site,
        gpu_model=model, gpu_memory_gib=141, gpus_per_node=GPUS_PER_NODE, interconnect="NVLink", max_gpus=4096,
    )  # fmt: skip
    prices.publish(sku=offer.sku, currency="USD", micros_per_unit_hour=micros, effective_from=at, by="x", at=at)
    return offer


def grow(offers: list[Offer], *, gpus: int) -> None:
    """Add nodes until the fleet has this many GPUs, the same number to each offer, in racks and fabrics."""
    wanted = gpus // GPUS_PER_NODE
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM provisioning_node")
        there = cursor.fetchone()[0]
        for position, offer in enumerate(offers):
            missing = (wanted - there) // len(offers) + (position < (wanted - there) % len(offers))
            while missing > 0:
                count = min(missing, NODES_PER_FABRIC)
                cursor.execute("SELECT count(*) FROM provisioning_node")
                start = cursor.fetchone()[0]
                fabric = Fabric.objects.create(site=offer.site, name=f"fabric-{start}", kind="infiniband")
                cursor.execute(
                    NODES,
                    {
                        "from": start, "count": count, "fabric": fabric.pk, "offer": offer.pk,
                        "model": offer.gpu_model, "gpus": GPUS_PER_NODE, "per_rack": NODES_PER_RACK,
                    },
                )  # fmt: skip
                missing -= count
        cursor.execute(GPUS, {"gpus": GPUS_PER_NODE})
        cursor.execute(HEARTBEATS)
        cursor.execute("VACUUM ANALYZE provisioning_node, provisioning_gpu, provisioning_heartbeat")


def make_busy(*, share: float, project_id: int) -> None:
    """Let this share of all nodes run an instance each, with its assignment, holds and workflow."""
    with connection.cursor() as cursor:
        cursor.execute(INSTANCES, {"project": project_id, "share": share})
        for rows in (ASSIGNMENTS, HOLDS, WORKFLOWS):
            cursor.execute(rows)
        cursor.execute(
            "UPDATE provisioning_node node SET free_mask = 0 FROM provisioning_assignment WHERE node_id = node.id"
        )
        cursor.execute("VACUUM ANALYZE provisioning_node, provisioning_assignment, provisioning_gpuhold")


def speakers() -> list[dict[str, Any]]:
    """Return what somebody must know to speak for each node."""
    running: dict[int, list[str]] = {}
    for node_id, assignment in Assignment.objects.values_list("node_id", "public_id"):
        running.setdefault(node_id, []).append(assignment)
    nodes = Node.objects.order_by("pk").values_list("pk", "public_id", "name", "desired_generation")
    return [
        {"id": public_id, "name": name, "key": f"key of {name}", "generation": generation, "seq": 1,
         "acknowledged": 1, "assignments": running.get(pk, [])}
        for pk, public_id, name, generation in nodes
    ]  # fmt: skip


def make_bare_assignments(count: int, offer: Offer, project_id: int) -> tuple[int, int]:
    """Make assignments for the bare claims to hold GPUs for; return the first's primary key and how many there are."""
    at = timezone.now()
    price = prices.current(skus=[offer.sku], currency="USD", at=at)[offer.sku]
    instance = Instance.objects.create(
        project_id=project_id, offer=offer, price_version=price, name="bare", replicas=count, gpus_per_replica=1,
        command=["true"], created_at=at,
    )  # fmt: skip
    node = Node.objects.order_by("pk").first()
    assert node is not None
    made = Assignment.objects.bulk_create(
        Assignment(instance=instance, node=node, replica=number, fence=1, gpu_uuids=[]) for number in range(count)
    )
    return made[0].pk, count


def node_range() -> tuple[int, int]:
    """Return the first node's primary key and how many there are: they were made in one go."""
    found = Node.objects.aggregate(first=Min("pk"), count=Count("pk"))
    return found["first"], found["count"]


ORDERED = """
INSERT INTO provisioning_instance (public_id, project_id, offer_id, price_version_id, name, market, replicas,
    gpus_per_replica, image, command, env, ports, lease, on_failure, placement, attach, desired, phase,
    phase_since, health, reason, message, retryable, restarts, run, quota_held, generation,
    observed_generation, created_at,
    inputs, outputs, checkpoint, checkpoint_sha256, outputs_sha256, has_network, avoid_nodes, paid_by)
SELECT 'ins_' || left(translate(md5(%(seed)s || n), '0189', 'wxyz'), 20), %(project)s, offer.id, price.id,
    %(seed)s || n, 'on_demand', 1, (ARRAY[1, 1, 1, 1, 2, 2, 4, 8])[1 + n %% 8], '', '["true"]', '{}', '[]', 'sticky',
    'stop', '{}', 'auto', 'running', 'queued', now(), 'unknown', '', '', false, 0, 1, 0, 1, 0, now(),
    '', '[]', '', '', '', true, '[]', ''
FROM generate_series(1, %(count)s) AS n
JOIN (SELECT id, public_id, row_number() OVER (ORDER BY id) - 1 AS nth, count(*) OVER () AS many
      FROM marketplace_offer) offer ON offer.nth = CASE WHEN n / 8 %% 2 = 0 THEN 0 ELSE n / 16 %% offer.many END
JOIN billing_priceversion price ON price.sku = offer.public_id || '/on_demand'
RETURNING id
"""


def make_orders(count: int, *, seed: str, project_id: int) -> list[int]:
    """Make instances that are placed nowhere yet; half of them want the first offer. Return their primary keys."""
    with connection.cursor() as cursor:
        cursor.execute(ORDERED, {"count": count, "seed": seed, "project": project_id})
        return [row[0] for row in cursor.fetchall()]


def empty() -> None:
    """Free every GPU."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE provisioning_gpuhold")
        cursor.execute("UPDATE provisioning_node SET free_mask = (1 << gpu_count) - 1")
        cursor.execute("VACUUM ANALYZE provisioning_node, provisioning_gpuhold, provisioning_assignment")


def miscounts() -> list[str]:
    """Return which GPUs are held twice and which nodes count otherwise than they have."""
    found = []
    with connection.cursor() as cursor:
        for fault in ("GPUs are held twice", "nodes miscount their free GPUs"):
            cursor.execute(FAULTS[fault])
            if broken := cursor.fetchall():
                found.append(f"{len(broken)} {fault}")
    return found


FAULTS = {
    "GPUs are held twice": """
        SELECT gpu_id FROM provisioning_gpuhold WHERE released_at IS NULL GROUP BY gpu_id HAVING count(*) > 1
    """,
    "nodes miscount their free GPUs": """
        SELECT node.id FROM provisioning_node node JOIN provisioning_gpu gpu ON gpu.node_id = node.id
        LEFT JOIN provisioning_gpuhold hold ON hold.gpu_id = gpu.id AND hold.released_at IS NULL
        GROUP BY node.id HAVING node.free_gpus <> count(*) FILTER (WHERE gpu.healthy AND hold.id IS NULL)
    """,
    "instances do not hold what they rent": """
        SELECT instance.id FROM provisioning_instance instance
        LEFT JOIN provisioning_assignment assignment ON assignment.instance_id = instance.id
        LEFT JOIN provisioning_gpuhold hold ON hold.assignment_id = assignment.id AND hold.released_at IS NULL
        WHERE instance.name <> 'bare'
        GROUP BY instance.id HAVING count(hold.id) <> instance.replicas * instance.gpus_per_replica
    """,
    "launches hold another quota than they say": """
        SELECT instance.id FROM provisioning_instance instance
        LEFT JOIN provisioning_quotahold hold ON hold.holder = instance.public_id
        WHERE instance.quota_held <> coalesce(hold.gpus, 0) AND instance.public_id IN (
            SELECT subject_id FROM marketplace_auditentry WHERE verb = 'instance.rent')
    """,
    "launches lack their audit entry, event or workflow": """
        SELECT instance.id FROM provisioning_instance instance WHERE name <> 'bare' AND NOT (
            instance.public_id IN (SELECT subject_id FROM marketplace_auditentry)
            AND EXISTS (SELECT FROM provisioning_instanceevent WHERE instance_id = instance.id)
            AND EXISTS (SELECT FROM provisioning_workflow WHERE instance_id = instance.id))
    """,
}


def faults(*, accepted: int) -> list[str]:
    """Return what is wrong with what the launches left behind; an empty list is the expected answer."""
    found = []
    with connection.cursor() as cursor:
        for fault, rows in FAULTS.items():
            cursor.execute(rows)
            if broken := cursor.fetchall():
                found.append(f"{len(broken)} {fault}")
    instances = Instance.objects.exclude(name="bare").count()
    keys = IdempotencyRecord.objects.filter(status=202).count()
    if not instances == keys == accepted:
        found.append(f"{accepted} launches were accepted, {instances} instances and {keys} stored answers exist")
    found += [f"quota {quota} is miscounted" for quota in quotas.miscounted()]
    return found + [f"books: {fault}" for fault in books.check(at=timezone.now())]
