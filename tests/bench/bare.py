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
FIRST_OFFER, OFFERS = (int(number) for number in os.environ.get("BENCH_OFFERS", "1 1").split())
SIZES = (1, 1, 1, 1, 2, 2, 4, 8)

LOCK_NODE = """
SELECT id FROM provisioning_node
WHERE offer_id = %s AND state = 'available' AND reachability = 'online' AND free_gpus >= %s
ORDER BY free_gpus, id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
"""
TAKE_GPUS = """
INSERT INTO provisioning_gpuhold (gpu_id, assignment_id, taken_at)
SELECT id, %s, now() FROM provisioning_gpu gpu WHERE node_id = %s AND healthy
    AND NOT EXISTS (SELECT FROM provisioning_gpuhold WHERE gpu_id = gpu.id AND released_at IS NULL)
ORDER BY index LIMIT %s
"""
COUNT_NODE = """
UPDATE provisioning_node SET free_gpus = free_gpus - %s, desired_generation = desired_generation + 1 WHERE id = %s
"""


@csrf_exempt
def claim(request: HttpRequest) -> JsonResponse:
    """Claim GPUs as `claim.sql` does, sizes and offers drawn alike."""
    gpus = random.choice(SIZES)
    offer = FIRST_OFFER + (0 if random.random() < 0.5 else random.randrange(OFFERS))
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(LOCK_NODE, [offer, gpus])
        found = cursor.fetchone()
        if found is None:
            return JsonResponse({"code": "no_capacity"}, status=409)
        cursor.execute(TAKE_GPUS, [FIRST_ASSIGNMENT + random.randrange(ASSIGNMENTS), found[0], gpus])
        cursor.execute(COUNT_NODE, [gpus, found[0]])
    return JsonResponse({"node": found[0]}, status=202)


urlpatterns = [path("claim", claim)]
application = get_wsgi_application()
