-- The bare claim as pgbench runs it: the statements of provisioning/placement.py without anything around them.
\set nth random(1, :offers * 2)
\set offer :first_offer + (case when :nth > :offers then 0 else :nth - 1 end)
\set size random(1, 8)
\set gpus case when :size <= 4 then 1 when :size <= 6 then 2 when :size = 7 then 4 else 8 end
\set assignment :first_assignment + :client_id
BEGIN;
SELECT coalesce((
    SELECT id FROM provisioning_node
    WHERE offer_id = :offer AND state = 'available' AND reachability = 'online' AND free_gpus >= :gpus
    ORDER BY free_gpus, id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED), 0) AS node \gset
INSERT INTO provisioning_gpuhold (gpu_id, assignment_id, taken_at)
    SELECT id, :assignment, now() FROM provisioning_gpu gpu WHERE node_id = :node AND healthy
        AND NOT EXISTS (SELECT FROM provisioning_gpuhold WHERE gpu_id = gpu.id AND released_at IS NULL)
    ORDER BY index LIMIT :gpus;
UPDATE provisioning_node SET free_gpus = free_gpus - :gpus, desired_generation = desired_generation + 1
    WHERE id = :node;
COMMIT;
