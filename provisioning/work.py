"""What an instance that runs to an end works on: what it begins with, what it leaves, and who pays for its hours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters that the command shows in Prometheus text format on a port of its own; its node reads them every 15 s.

    What grows by more than `most_per_s` in a second counts nothing; 0 sets no bound.
    """

    port: int
    names: tuple[str, ...]
    path: str = "/metrics"
    most_per_s: int = 0

    @classmethod
    def of(cls, said: Mapping[str, Any] | None) -> "Counters | None":
        """Return the counters that a document names by `port`, `names` and perhaps `path`; None where it names none."""
        return None if said is None else cls(**{**said, "names": tuple(said["names"])})


@dataclass(frozen=True, slots=True)
class Work:
    """Inputs and outputs are folders of the project's artifacts (`artifacts.py`), each named by its manifest's SHA-256.

    `inputs` are put into the work folder before the command starts. `outputs`
    are relative paths or globs of what the command leaves there; a folder means
    all that is in it. `checkpoint` is a relative folder that is kept while the
    command runs and put back at each later start; `checkpoint_sha256` is what
    it begins with. Without `has_network` the command reaches nothing but
    itself. `avoid_nodes` are public ids of nodes on which it never runs.
    `paid_by` is the public id of what pays for its hours instead of its
    organization: nothing is held for them and nothing charged. What runs longer
    than `time_limit_s` is charged for no more than that; ending it is for whoever
    set the limit. What keeps more than `disk_bytes` in its work folder, inputs
    among it, is ended by its node, as a failure of its own. `counters` are read while it runs, see `counters.py`. What
    `is_off_limits` nobody of its project enters, starts or ends: what it finds is not theirs to decide.
    """

    inputs: str = ""
    outputs: tuple[str, ...] = ()
    checkpoint: str = ""
    checkpoint_sha256: str = ""
    has_network: bool = True
    avoid_nodes: tuple[str, ...] = ()
    paid_by: str = ""
    time_limit_s: int | None = None
    disk_bytes: int | None = None
    counters: Counters | None = None
    is_off_limits: bool = False


NOTHING = Work()
