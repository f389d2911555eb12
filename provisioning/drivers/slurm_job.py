"""The job that stands for an assignment: it holds its GPUs at a barrier and starts the command when it is told to.

SIGURG is the word to start: its default is to be ignored, so one that comes
before the script listens does no harm, and one that comes later is sent again.
The job's comment tells how far it is. The command takes the script's place
(`exec`), so exit code and signals are its own and it cannot be started twice,
not even where Slurm puts a job back in its queue in spite of what we asked.
"""

import shlex
from collections.abc import Sequence

from provisioning.agent.environment import SYSTEM_PATH, meeting_port
from provisioning.models import Assignment, Cluster, Instance, SlurmNode

MEMORY_SOLD_PERCENT = 98
READY, STARTED = "ready", "started"

SCRIPT = """\
#!/bin/sh
[ -z "$SLURM_RESTART_COUNT" ] || exit 75
go=
trap 'go=1' URG
tell() {{ timeout 10 scontrol update JobId="$SLURM_JOB_ID" Comment="$1" >/dev/null 2>&1; }}
until [ -n "$go" ] || tell {ready}; do sleep 1 & wait $!; done
while [ -z "$go" ]; do sleep 1 & wait $!; done
trap - URG
tell {started} || (until tell {started}; do sleep 1; done &)
{exports}
exec {command}
"""

ERRAND = """\
#!/bin/sh
said=$(scontrol update NodeName={node} State={state} {reason} 2>&1) && exit 0
said=$(printf %s "$said" | tr '\\n' ' ' | cut -c1-150)
timeout 10 scontrol update JobId="$SLURM_JOB_ID" Comment={comment}"$said" >/dev/null 2>&1
exit 1
"""
FAILED = " failed: "  # In an errand's comment, before what scontrol said.


def mark(cluster: Cluster) -> str:
    """Return how the comment of every job of ours on this cluster begins."""
    return f"gpumarket {cluster.public_id} "


def comment(cluster: Cluster, assignment: Assignment, word: str) -> str:
    return f"{mark(cluster)}{assignment.fence} {word}"


def script(cluster: Cluster, assignment: Assignment, hosts: Sequence[str]) -> str:
    """Return the batch script of an assignment; `hosts` are the host names of its gang, by replica."""
    instance = assignment.instance
    exports = [f"export {name}={shlex.quote(value)}" for name, value in _environment(assignment, hosts).items()]
    return SCRIPT.format(
        ready=shlex.quote(comment(cluster, assignment, READY)),
        started=shlex.quote(comment(cluster, assignment, STARTED)),
        exports="\n".join(exports),
        command=shlex.join(instance.command),
    )


def order(cluster: Cluster, assignment: Assignment, *, place: SlurmNode) -> dict[str, object]:
    """Return the job's properties: pinned to its node, with its GPUs, run once, and alone of its name.

    Cores and memory come in proportion to the GPUs; without a number Slurm
    would give all of a node's memory to the first job. A rest is left for errands.
    """
    gpus, of = len(assignment.gpu_uuids), max(1, place.node.gpu_count)
    is_spot = assignment.instance.market == Instance.Market.SPOT and cluster.spot_partition
    output = f"{cluster.log_path.rstrip('/')}/{assignment.public_id}.log" if cluster.log_path else "/dev/null"
    return {
        "name": assignment.public_id,
        "comment": comment(cluster, assignment, "submitted"),
        "partition": cluster.spot_partition if is_spot else cluster.partition,
        "nodelist": place.name,
        "gres": f"gpu:{gpus}",
        "cpus_per_task": max(1, (place.cpus - 1) * gpus // of),
        "memory_per_node": f"{max(1, place.memory_mib * MEMORY_SOLD_PERCENT // 100 * gpus // of)}M",
        # A job that Slurm puts back in its queue would start its command twice; "requeue": false changes nothing here.
        "no_requeue": True,
        # Should a submit that seemed lost arrive after all, Slurm itself never runs two of one name at once.
        "dependency": "singleton",
        "environment": {"PATH": SYSTEM_PATH},
        "current_working_directory": "/tmp",  # noqa: S108  the one folder that every node surely has
        "standard_output": output,
    }


def errand(cluster: Cluster, *, node: str, state: str, reason: str) -> tuple[str, dict[str, object]]:
    """Return a job of a moment that sets a node's state: version 0.0.38 has no other door for it."""
    words = f"Reason={shlex.quote(reason)}" if reason else ""
    comment = f"{mark(cluster)}errand {node} {state}"[:200]
    job: dict[str, object] = {
        "name": "gpumarket-errand",
        "memory_per_node": "16M",
        "comment": comment,
        "partition": cluster.partition,
        "no_requeue": True,
        "environment": {"PATH": SYSTEM_PATH},
        "current_working_directory": "/tmp",  # noqa: S108
        "standard_output": "/dev/null",
    }
    script = ERRAND.format(node=shlex.quote(node), state=state, reason=words, comment=shlex.quote(comment + FAILED))
    return script, job


def _environment(assignment: Assignment, hosts: Sequence[str]) -> dict[str, str]:
    """Return what the command finds beside what Slurm sets; as `agent/environment.py` names it."""
    instance, replica, replicas = assignment.instance, str(assignment.replica), str(assignment.instance.replicas)
    meeting = {
        "PYTHONUNBUFFERED": "1",
        "LANG": "C.UTF-8",
        "MASTER_ADDR": hosts[0] if instance.replicas > 1 and hosts else "127.0.0.1",
        "MASTER_PORT": str(meeting_port(instance.public_id)),
    }
    return meeting | {str(name): str(value) for name, value in instance.env.items()} | {
        "GPUMARKET_INSTANCE_ID": instance.public_id,
        "GPUMARKET_ASSIGNMENT_ID": assignment.public_id,
        "GPUMARKET_PEERS": ",".join(hosts),
        "RANK": replica,
        "NODE_RANK": replica,
        "WORLD_SIZE": replicas,
        "NNODES": replicas,
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
    }  # fmt: skip
