"""The statement that takes GPUs: it locks nodes, looks whether their own rows are as they were chosen, and writes."""

FITS = """
    node.offer_id = %(offer)s::bigint AND node.state = 'available' AND node.reachability = 'online' AND NOT node.is_held
    AND node.free_mask & wanted.mask = wanted.mask
    AND (node.exclusive_to_id IS NULL OR node.exclusive_to_id = %(owner)s::bigint)
    AND (%(alone)s::bigint IS NULL OR node.exclusive_to_id = %(alone)s::bigint OR node.free_gpus = node.gpu_count)
    AND CASE node.kept_for WHEN 'queue' THEN NOT %(is_new)s::boolean WHEN 'block' THEN %(has_block_nodes)s::boolean
        ELSE true END
    AND (%(alone)s::bigint IS NOT NULL OR NOT EXISTS (
        SELECT FROM provisioning_policy policy WHERE policy.document @> '{"no_shared_host": true}'
            AND (policy.project_id = %(project)s::bigint OR policy.organization_id = %(owner)s::bigint)
    ))
"""
TAKE = """
WITH place AS (
    SELECT * FROM unnest(%(ranks)s::int[], %(nodes)s::bigint[], %(masks)s::bigint[], %(replicas)s::int[],
        %(public_ids)s::text[], %(levels)s::text[]) AS place (rank, node_id, mask, replica, public_id, level)
), wanted AS MATERIALIZED (
    SELECT rank, node_id, level, bit_or(mask) AS mask FROM place GROUP BY rank, node_id, level
), locked AS MATERIALIZED (
    SELECT node.id, wanted.rank, wanted.level, wanted.mask FROM wanted JOIN provisioning_node node ON node.id = node_id
    WHERE {fits} {order}
), taken AS (
    UPDATE provisioning_node node SET free_mask = node.free_mask & ~locked.mask,
        exclusive_to_id = coalesce(node.exclusive_to_id, %(alone)s::bigint),
        desired_generation = node.desired_generation + 1
    FROM locked WHERE node.id = locked.id AND (SELECT count(*) FROM locked) = %(count)s::int
    RETURNING node.id, node.name, locked.rank, locked.level
), gpu AS (
    SELECT gpu.id, gpu.uuid, gpu.index, place.public_id FROM taken
    JOIN place ON place.rank = taken.rank AND place.node_id = taken.id
    JOIN provisioning_gpu gpu ON gpu.node_id = taken.id AND gpu.healthy AND gpu.state = 'clean' AND gpu.index < 63
        AND place.mask >> gpu.index & 1 = 1
), assigned AS (
    INSERT INTO provisioning_assignment (public_id, instance_id, node_id, replica, fence, gpu_uuids, desired, observed,
        message, log_bytes, ports, created_at)
    SELECT place.public_id, %(instance)s::bigint, place.node_id, place.replica, %(run)s::int, held.uuids, 'prepared',
        'pending', '', 0, '{{}}', %(at)s::timestamptz
    FROM place JOIN (SELECT public_id, jsonb_agg(uuid ORDER BY index) AS uuids FROM gpu GROUP BY public_id) held
        USING (public_id)
    RETURNING id, public_id, node_id, replica, gpu_uuids
), held AS (
    INSERT INTO provisioning_gpuhold (gpu_id, assignment_id, taken_at)
    SELECT gpu.id, assigned.id, %(at)s::timestamptz FROM gpu JOIN assigned USING (public_id)
), decided AS (
    INSERT INTO provisioning_placementdecision (public_id, project_id, offer_id, instance_id, run, at, outcome, times,
        request, level, nodes, candidates, rejected, most, relaxation, policy_digest)
    SELECT %(decision)s::text, %(project)s::bigint, %(offer)s::bigint, %(instance)s::bigint, %(run)s::int,
        %(at)s::timestamptz, 'placed', 1, %(request)s::jsonb, min(level), count(*), %(candidates)s::int,
        %(rejected)s::jsonb, '{{}}', '{{}}', %(policy_digest)s::text
    FROM taken HAVING count(*) > 0
)
SELECT assigned.id, assigned.public_id, replica, gpu_uuids, taken.id, taken.name
FROM assigned JOIN taken ON taken.id = node_id ORDER BY replica
"""
# One of several nodes, at once: one that is being claimed this moment is passed over.
TAKE_ONE_NOW = TAKE.format(fits=FITS, order="ORDER BY wanted.rank LIMIT 1 FOR NO KEY UPDATE OF node SKIP LOCKED")
# All of the nodes, waiting for whoever claims some of them this moment.
TAKE_ALL = TAKE.format(fits=FITS, order="ORDER BY node.id FOR NO KEY UPDATE OF node")
