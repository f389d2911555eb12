"""The capacity manager at her desk, and things that she looks at."""

from typing import Any

import pytest
from django.test import Client

from marketplace.models import AuditEntry, User
from provisioning.models import Gpu, Node


@pytest.fixture
def desk(client: Client, carol: User) -> Client:
    """Carol's browser."""
    client.force_login(carol)
    return client


def make_nodes(like: Node, count: int, **overrides: Any) -> list[Node]:
    """Nodes that joined, with two GPUs each."""
    ordinary = {
        "offer": like.offer,
        "fabric": like.fabric,
        "gpu_model": like.gpu_model,
        "gpu_count": 2,
        "gpu_memory_mib": 1000,
        "free_mask": 0b11,
        "state": "available",
        "reachability": "online",
    }
    made = [
        Node.objects.create(**{"name": f"more-{number}", "rack": f"r{number // 8 + 2}"} | ordinary | overrides)
        for number in range(count)
    ]
    Gpu.objects.bulk_create(
        Gpu(node=node, uuid=f"GPU-{node.name}-{index}", index=index, memory_mib=1000)
        for node in made
        for index in (0, 1)
    )
    return made


def only_entry(verb: str) -> AuditEntry:
    """The one audit entry of a verb."""
    return AuditEntry.objects.get(verb=verb)
