"""The notice that a workload's GPUs are taken back, as the command sees it and as this node holds to it.

In the folder that GPUMARKET_METADATA names is a file interruption.json from the notice on, and none while there is
none; it appears whole and goes whole. Where the control plane is cut off meanwhile, the node ends the workload by its
own clock: SIGTERM one grace before the deadline, SIGKILL at the deadline, neither ever earlier.
"""

import json
from pathlib import Path

from provisioning.agent.clock import boot_id, boottime
from provisioning.agent.files import write_whole
from provisioning.agent.protocol import Notice

FILE = "interruption.json"


def show(folder: Path, notice: Notice | None) -> None:
    """Let the command see its notice, or none; writes only what changes. Raises OSError."""
    file = folder / FILE
    if notice is None:
        file.unlink(missing_ok=True)
        return
    content = json.dumps(
        {
            "id": notice.id,
            "reason": notice.reason,
            "notice_at": notice.notice_at,
            "deadline_at": notice.deadline_at,
            "min_notice_s": notice.min_notice_s,
            "sigterm_before_s": notice.grace_s,
        }
    ).encode()
    if file.exists() and file.read_bytes() == content:
        return
    folder.mkdir(mode=0o755, exist_ok=True)
    write_whole(file, content, durable=False)
    file.chmod(0o644)  # The command may run as another user than the agent.


def left_s(notice: Notice) -> float:
    """Return the seconds until the deadline; none is left where the machine started anew since."""
    return notice.until - boottime() if notice.boot_id == boot_id() else 0.0


def why(notice: Notice) -> str:
    """Return the reason for an end that was announced; the control plane looks for the id in it."""
    return f"interrupted as announced ({notice.id})"
