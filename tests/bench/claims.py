"""Clients that claim GPUs for instances that were made before, as fast as they can: one process of a few threads."""

import json
import sys
import threading
import time
from typing import Any


def main() -> None:
    """Read the job from standard input, claim, and write what was seen to standard output."""
    job = json.loads(sys.stdin.readline())
    import django

    django.setup()
    from provisioning.models import Instance

    instances = list(Instance.objects.filter(pk__in=job["instances"]).order_by("pk"))
    each = len(instances) // job["threads"]
    seen: list[dict[str, int]] = []
    # All processes begin at the same moment, with their connections open and the fleet read.
    barrier = threading.Barrier(job["threads"] + 1)
    threads = [
        threading.Thread(target=_claim, args=(instances[each * n : each * (n + 1)], job["seconds"], barrier, seen))
        for n in range(job["threads"])
    ]
    for thread in threads:
        thread.start()
    barrier.wait()
    print("ready", flush=True)
    sys.stdin.readline()
    barrier.wait()
    for thread in threads:
        thread.join()
    print(json.dumps({name: sum(one[name] for one in seen) for name in ("claimed", "refused", "left")}))


def _claim(instances: list[Any], seconds: float, barrier: threading.Barrier, seen: list[dict[str, int]]) -> None:
    from django.db import connection
    from django.utils import timezone

    from provisioning import placement, shards
    from provisioning.errors import NoCapacity

    for offer in {instance.offer_id for instance in instances}:
        with shards.current(offer) as live:
            live.refresh()
    barrier.wait()
    barrier.wait()
    claimed = refused = 0
    until = time.monotonic() + seconds
    for instance in instances:
        if time.monotonic() >= until:
            break
        try:
            placement.claim(instance=instance, at=timezone.now())
        except NoCapacity:
            refused += 1
        else:
            claimed += 1
    seen.append({"claimed": claimed, "refused": refused, "left": len(instances) - claimed - refused})
    connection.close()


if __name__ == "__main__":
    main()
