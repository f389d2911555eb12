"""The least that Django can do for a launch: a view that runs the bare claim and nothing else.

The same settings, database and server as the product's, without middleware,
authentication, REST framework, tenants or money. What the product's rate falls
short of this one's is what those cost.
"""

import os
import random

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.bench.bare_settings"

from django.core.wsgi import get_wsgi_application
from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

FIRST_ASSIGNMENT, ASSIGNMENTS = (int(number) for number in os.environ.get("BENCH_ASSIGNMENTS", "1 1").split())
FIRST_NODE, NODES = (int(number) for number in os.environ.get("BENCH_NODES", "1 1").split())
SIZES = (1, 1, 1, 1, 2, 2, 4, 8)

LOCK_NODE = """
SELECT id FROM provisioning_node
WHERE id = %s AND state = 'available' AND reachability = 'online' AND free_gpus >= %s FOR NO KEY UPDATE
"""
TAKE_GPUS = """
WITH free AS (
    SELECT id, index FROM provisioning_gpu gpu WHERE node_id = %(node)s AND healthy
        AND NOT EXISTS (SELECT FROM provisioning_gpuhold WHERE gpu_id = gpu.id AND released_at IS NULL)
    ORDER BY index LIMIT %(gpus)s
), held AS (
    INSERT INTO provisioning_gpuhold (gpu_id, assignment_id, taken_at) SELECT id, %(assignment)s, now() FROM free
)
UPDATE provisioning_node SET free_mask = free_mask & ~(SELECT bit_or(1::bigint << index) FROM free),
    desired_generation = desired_generation + 1 WHERE id = %(node)s
"""


@csrf_exempt
def claim(request: HttpRequest) -> JsonResponse:
    """Claim GPUs as `claim.sql` does, sizes and nodes drawn alike."""
    gpus, node = random.choice(SIZES), FIRST_NODE + random.randrange(NODES)
    assignment = FIRST_ASSIGNMENT + random.randrange(ASSIGNMENTS)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(LOCK_NODE, [node, gpus])
        if cursor.fetchone() is None:
            return JsonResponse({"code": "no_capacity"}, status=409)
        cursor.execute(TAKE_GPUS, {"node": node, "gpus": gpus, "assignment": assignment})
    return JsonResponse({"node": node}, status=202)


urlpatterns = [path("claim", claim)]
application = get_wsgi_application()
