-- The bare claim as pgbench runs it: lock a node that is given, take GPUs that are free there, count them. Who has to
-- choose the node, write down the replica and keep the decision does more.
\set node :first_node + random(0, :nodes - 1)
\set size random(1, 8)
\set gpus case when :size <= 4 then 1 when :size <= 6 then 2 when :size = 7 then 4 else 8 end
\set assignment :first_assignment + :client_id
BEGIN;
SELECT free_gpus FROM provisioning_node WHERE id = :node FOR NO KEY UPDATE;
WITH free AS (
    SELECT id, index FROM provisioning_gpu gpu WHERE node_id = :node AND healthy
        AND NOT EXISTS (SELECT FROM provisioning_gpuhold WHERE gpu_id = gpu.id AND released_at IS NULL)
    ORDER BY index LIMIT :gpus
), held AS (
    INSERT INTO provisioning_gpuhold (gpu_id, assignment_id, taken_at) SELECT id, :assignment, now() FROM free
)
UPDATE provisioning_node SET free_mask = free_mask & ~(SELECT coalesce(bit_or(1::bigint << index), 0) FROM free),
    desired_generation = desired_generation + 1 WHERE id = :node;
COMMIT;
