"""The notice that a workload's GPUs are taken back, as the command sees it and as this node holds to it.

In the folder that GPUMARKET_METADATA names is a file interruption.json from the notice on, and none while there is
none; it appears whole and goes whole. Before that there may be a file risk.json, which promises nothing. Where the
control plane is cut off meanwhile, the node ends the workload by its own clock: SIGTERM one grace before the deadline,
SIGKILL at the deadline, neither ever earlier.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.files import write_whole
from provisioning.agent.protocol import Assignment, Notice

FILE = "interruption.json"
RISK_FILE = "risk.json"


def show(folder: Path, wanted: Assignment) -> None:
    """Let the command see its notice, else its risk, or none; writes only what changes. Raises OSError."""
    notice, risk = wanted.notice, None if wanted.notice else wanted.risk
    told = None if notice is None else {
        "id": notice.id,
        "reason": notice.reason,
        "notice_at": notice.notice_at,
        "deadline_at": notice.deadline_at,
        "min_notice_s": notice.min_notice_s,
        "sigterm_before_s": notice.grace_s,
    }  # fmt: skip
    _keep(folder / FILE, told)
    _keep(folder / RISK_FILE, None if risk is None else asdict(risk))


def _keep(file: Path, told: Mapping[str, object] | None) -> None:
    """Let a file say this, or not be there."""
    if told is None:
        file.unlink(missing_ok=True)
        return
    content = json.dumps(told).encode()
    if file.exists() and file.read_bytes() == content:
        return
    file.parent.mkdir(mode=0o755, exist_ok=True)
    write_whole(file, content, durable=False)
    file.chmod(0o644)  # The command may run as another user than the agent.


def left_s(notice: Notice) -> float:
    """Return the seconds until the deadline; none is left where the machine started anew since."""
    return notice.until - boottime() if notice.boot_id == boot_id() else 0.0


def why(notice: Notice) -> str:
    """Return the reason for an end that was announced; the control plane looks for the id in it."""
    return f"interrupted as announced ({notice.id})"
