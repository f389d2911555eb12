"""What a page does, as a command line or a curl call that can be copied."""

import json
import shlex
from collections.abc import Mapping, Sequence

from django.conf import settings

from marketplace.portal.mounting import Mount

TOKEN = "$GPUMARKET_TOKEN"  # noqa: S105  the name of a variable


def offers(gpu_model: str, country: str, min_gpus: int, *, available: bool) -> str:
    """Return the command that lists these offers."""
    parts = ["gpumarket", "offers"]
    parts += ["--gpu-model", gpu_model] if gpu_model else []
    parts += ["--country", country] if country else []
    parts += ["--min-gpus", str(min_gpus)] if min_gpus else []
    parts += ["--available"] if available else []
    return shlex.join(parts)


def launch(
    *,
    offer: str,
    gpus: int,
    replicas: int,
    name: str,
    command: Sequence[str],
    env: Mapping[str, str],
    project: str,
    image: str = "",
    ports: Sequence[int] = (),
    lease: str = "",
    restarts: bool = False,
    mounts: Sequence[Mount] = (),
    max_price: str = "",
    reservation: str = "",
    contract: str = "",
) -> tuple[str, str]:
    """Return an order as a command line and as a curl call; with a `max_price` it is a bid."""
    parts = ["gpumarket", "bid" if max_price else "launch", offer, "--gpus", str(gpus)]
    parts += ["--max-price", max_price] if max_price else []
    parts += ["--replicas", str(replicas)] if replicas != 1 else []
    parts += ["--name", name] if name else []
    for variable, value in env.items():
        parts += ["--env", f"{variable}={value}"]
    parts += ["--image", image] if image else []
    for port in ports:
        parts += ["--port", str(port)]
    parts += ["--lease", lease] if lease else []
    parts += ["--restart-on-failure"] if restarts else []
    parts += ["--reservation", reservation] if reservation else []
    parts += ["--contract", contract] if contract else []
    for mount in mounts:
        parts += ["--volume", mount.written()]
    parts += ["--project", project] if project else []
    parts += ["--", *command] if command else []
    body: dict[str, object] = {"offer": offer, "gpus": gpus, "replicas": replicas, "command": list(command)}
    body |= {"max_price": max_price} if max_price else {}
    body |= {"image": image} if image else {}
    body |= {"ports": list(ports)} if ports else {}
    body |= {"lease": lease} if lease else {}
    body |= {"on_failure": "restart"} if restarts else {}
    if reservation:
        body["attach" if reservation in {"forbid", "strict"} else "reservation"] = reservation
    body |= {"contract": contract} if contract else {}
    if mounts:
        body["volumes"] = [
            {"volume": one.volume, "path": one.path} | ({"read_only": True} if one.read_only else {}) for one in mounts
        ]
    body |= {"name": name} if name else {}
    body |= {"env": dict(env)} if env else {}
    body |= {"project": project} if project else {}
    route = "bids" if max_price else "instances"
    curl = (
        f'curl -X POST {settings.PUBLIC_URL}/api/v1/{route} \\\n  -H "Authorization: Bearer {TOKEN}" \\\n'
        f'  -H "Idempotency-Key: $(uuidgen)" \\\n  -H "Content-Type: application/json" \\\n'
        f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    )
    return shlex.join(parts), curl


def instance(instance_id: str) -> tuple[str, str]:
    """Return how to see an instance by a command line and by a curl call."""
    curl = f'curl -H "Authorization: Bearer {TOKEN}" \\\n  {settings.PUBLIC_URL}/api/v1/instances/{instance_id}'
    return f"gpumarket show {instance_id}\ngpumarket logs -f {instance_id}", curl
