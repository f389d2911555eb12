"""What of the nodes that tenants have alone (`no_shared_host`) can be promised to nobody else. SQL for `calendar`.

A node on which the tenant runs anything on demand is the tenant's for as long as
nobody knows: closed is all of it that does not run on demand, also what a block
holds there, since that block has whole nodes beside it. The other nodes that its
blocks have begun on are theirs together, so closed is what they have more than all
its blocks have in this hour, without what those run elsewhere. Where only spot
runs, closed is what is free. What others still have there is theirs.
"""

from django.db import connection

# Who has begun, or has an hour that is due to begin.
BLOCKS = """
SELECT booked.id, booked.offer_id, project.organization_id, strip.gpus FROM marketplace_reservation booked
JOIN marketplace_project project ON project.id = booked.project_id
JOIN marketplace_reservationstrip strip ON strip.reservation_id = booked.id
    AND strip.starts_at <= %(at)s::timestamptz AND strip.ends_at > %(at)s::timestamptz
WHERE booked.state IN ('locked', 'active', 'delayed', 'partially_fulfilled', 'ending')
"""
# Nodes on which anything may begin, and GPUs: out is what a person or a check has taken out.
IN_SERVICE = "node.state = 'available' AND NOT node.is_held AND node.reachability NOT IN ('unknown', 'lost')"
IN_ORDER = "gpu.healthy AND gpu.state <> 'quarantined'"
# By node: its GPUs in good order that its tenant has or may have, and what holds them.
NODES = f"""
SELECT node.id, node.offer_id, node.exclusive_to_id AS tenant_id, count(*) AS gpus, count(hold.id) AS held,
    count(*) FILTER (WHERE instance.market = 'on_demand') AS open_ended,
    count(*) FILTER (WHERE instance.market = 'reserved') AS in_blocks
FROM provisioning_node node JOIN provisioning_gpu gpu ON gpu.node_id = node.id AND {IN_ORDER}
LEFT JOIN provisioning_gpuhold hold ON hold.gpu_id = gpu.id AND hold.released_at IS NULL
LEFT JOIN provisioning_assignment assignment ON assignment.id = hold.assignment_id
LEFT JOIN provisioning_instance instance ON instance.id = assignment.instance_id
LEFT JOIN marketplace_project project ON project.id = instance.project_id
WHERE node.exclusive_to_id IS NOT NULL AND {IN_SERVICE}
    AND (%(offer)s::bigint IS NULL OR node.offer_id = %(offer)s)
    AND (hold.id IS NULL OR project.organization_id = node.exclusive_to_id)
GROUP BY node.id
"""  # noqa: S608  nothing in it comes from outside
# By offer and tenant: what is closed whatever its blocks are, and the GPUs of the nodes that are its blocks'.
TENANTS = f"""
SELECT offer_id, tenant_id,
    sum(CASE WHEN open_ended > 0 THEN gpus - open_ended WHEN in_blocks = 0 THEN gpus - held ELSE 0 END) AS anyway,
    coalesce(sum(gpus) FILTER (WHERE open_ended = 0 AND in_blocks > 0), 0) AS of_blocks
FROM ({NODES}) alone GROUP BY offer_id, tenant_id
"""  # noqa: S608  nothing in it comes from outside
ELSEWHERE = """
SELECT count(*) FROM provisioning_instance instance
JOIN provisioning_assignment assignment ON assignment.instance_id = instance.id
JOIN provisioning_gpuhold hold ON hold.assignment_id = assignment.id AND hold.released_at IS NULL
JOIN provisioning_node node ON node.id = assignment.node_id AND node.exclusive_to_id IS DISTINCT FROM tenant.tenant_id
WHERE instance.reservation_id IN (
    SELECT id FROM blocks WHERE blocks.offer_id = tenant.offer_id AND blocks.organization_id = tenant.tenant_id
)
"""
CLOSED = f"""
WITH blocks AS MATERIALIZED ({BLOCKS} AND (%(offer)s::bigint IS NULL OR booked.offer_id = %(offer)s))
SELECT offer_id, sum(anyway + greatest(0, of_blocks - (
    SELECT coalesce(sum(gpus), 0) FROM blocks
    WHERE blocks.offer_id = tenant.offer_id AND blocks.organization_id = tenant.tenant_id
) + ({ELSEWHERE}))) AS gpus FROM ({TENANTS}) tenant GROUP BY offer_id
"""  # noqa: S608  nothing in it comes from outside


def nodes_of_blocks(*, offer_id: int, tenant_id: int) -> frozenset[int]:
    """Return the nodes of an offer that a tenant has alone and only its blocks have begun on."""
    with connection.cursor() as cursor:
        cursor.execute(NODES, {"offer": offer_id})
        rows = cursor.fetchall()
    return frozenset(row[0] for row in rows if row[2] == tenant_id and not row[5] and row[6])


def gpus_of_blocks(offer_id: int) -> dict[int, int]:
    """Return by tenant how many GPUs the nodes of an offer have that only its blocks have begun on."""
    with connection.cursor() as cursor:
        cursor.execute(TENANTS, {"offer": offer_id})
        return {tenant_id: int(gpus) for _, tenant_id, _, gpus in cursor.fetchall()}
