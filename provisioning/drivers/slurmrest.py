"""What we say to slurmrestd, and what it answers: version 0.0.38 of Slurm's REST interface, with a JSON Web Token.

Every call ends within seconds or raises OutsideFault. A bad token is answered
with status 500 and an empty list, so an answer counts only when it names no error.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import httpx

from provisioning.errors import OutsideFault
from provisioning.models import Cluster
from provisioning.secrets import Unreadable, unseal

TIMEOUT_S = 5
ANSWER_MAX = 300
UNKNOWN_JOB, ALREADY_DONE = 2017, 2021
GPUS = re.compile(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)")


@dataclass(frozen=True)
class Job:
    """A job as Slurm shows it; `exit_code` is what a shell would see."""

    id: int
    name: str
    state: str
    reason: str
    comment: str
    gpus: int
    exit_code: int
    ended_at: datetime | None


@dataclass(frozen=True)
class SeenNode:
    """A node as Slurm shows it."""

    name: str
    hostname: str
    version: str
    state: str
    flags: frozenset[str]
    reason: str
    gpus: int
    cpus: int
    memory_mib: int
    features: tuple[str, ...]
    partitions: tuple[str, ...]

    @property
    def is_drained(self) -> bool:
        return "DRAIN" in self.flags

    @property
    def answers(self) -> bool:
        return self.state not in {"down", "unknown", "error"} and "NOT_RESPONDING" not in self.flags

    @property
    def shown(self) -> str:
        return "+".join([self.state, *sorted(flag.lower() for flag in self.flags)])


class Slurm:
    """A conversation with one cluster; a context, so that its connection is closed."""

    def __init__(self, cluster: Cluster, *, errands: bool = False) -> None:
        """Speak as the user of errands, where the cluster has one and `errands` is said, and else as that of jobs."""
        user, sealed = cluster.user, cluster.token_sealed
        if errands and cluster.errand_user:
            user, sealed = cluster.errand_user, cluster.errand_token_sealed
        try:
            token = unseal(sealed)
        except Unreadable as error:
            raise OutsideFault(str(error)) from error
        self._client = httpx.Client(
            base_url=f"{cluster.base_url.rstrip('/')}/slurm/{cluster.version}/",
            headers={"X-SLURM-USER-NAME": user, "X-SLURM-USER-TOKEN": token},
            timeout=TIMEOUT_S,
            trust_env=False,
            # Reading the system's certificates takes longer than a request; without TLS they are not needed.
            verify=cluster.base_url.startswith("https"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def jobs(self) -> list[Job]:
        """Return every job that the controller remembers."""
        return [_job(told) for told in self._ask("GET", "jobs")["jobs"]]

    def nodes(self) -> list[SeenNode]:
        """Return every node of the cluster."""
        return [_node(told) for told in self._ask("GET", "nodes")["nodes"]]

    def submit(self, *, script: str, job: Mapping[str, object]) -> int:
        """Submit a batch job and return its number."""
        return int(self._ask("POST", "job/submit", json={"script": script, "job": job})["job_id"])

    def signal(self, job_id: int, name: str) -> None:
        """Send a signal to everything in a job; a job that has ended takes none."""
        self._ask("DELETE", f"job/{job_id}", params={"signal": name}, settled={UNKNOWN_JOB, ALREADY_DONE})

    def cancel(self, job_id: int) -> None:
        """Ask for a job to end; one that has ended, or that nobody knows, is fine."""
        self._ask("DELETE", f"job/{job_id}", settled={UNKNOWN_JOB, ALREADY_DONE})

    def _ask(self, method: str, path: str, *, settled: set[int] | None = None, **more: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **more)
            answer = response.json()
            errors = [error for error in answer["errors"] if error.get("error_number") not in (settled or ())]
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OutsideFault(f"slurmrestd did not answer: {type(error).__name__} {error}".strip()) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutsideFault(f"slurmrestd answered {response.status_code}: {response.text[:ANSWER_MAX]}") from error
        if errors or (not response.is_success and not answer["errors"]):
            raise OutsideFault(f"Slurm refused ({response.status_code}): {_said(errors)}")
        assert isinstance(answer, dict)
        return answer


def _said(errors: list[dict[str, Any]]) -> str:
    said = [f"{error.get('description', '')} ({error.get('error', '')})" for error in errors[:3]]
    return "; ".join(said)[:ANSWER_MAX] or "no reason given; the token may be bad or have expired"


def _job(told: Mapping[str, Any]) -> Job:
    status, ended = int(told.get("exit_code") or 0), int(told.get("end_time") or 0)
    return Job(
        id=int(told["job_id"]),
        name=str(told.get("name") or ""),
        state=str(told.get("job_state") or ""),
        reason=str(told.get("state_reason") or "").replace("None", ""),
        comment=str(told.get("comment") or ""),
        gpus=sum(gpus_in(str(detail)) for detail in told.get("gres_detail") or ()),
        exit_code=128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status),
        ended_at=datetime.fromtimestamp(ended, UTC) if ended else None,
    )


def _node(told: Mapping[str, Any]) -> SeenNode:
    return SeenNode(
        name=str(told["name"]),
        hostname=str(told.get("hostname") or told["name"]),
        version=str(told.get("slurmd_version") or ""),
        state=str(told.get("state") or "unknown").lower(),
        flags=frozenset(str(flag).upper() for flag in told.get("state_flags") or ()),
        reason=str(told.get("reason") or ""),
        gpus=gpus_in(str(told.get("gres") or "")),
        cpus=int(told.get("cpus") or 1),
        memory_mib=int(told.get("real_memory") or 0),
        features=tuple(str(told.get("features") or "").split(",")),
        partitions=tuple(map(str, told.get("partitions") or ())),
    )


def gpus_in(gres: str) -> int:
    """Return how many GPUs a generic resource such as "gpu:h100:8(S:0-1)" counts."""
    return sum(int(count) for count in GPUS.findall(gres))
