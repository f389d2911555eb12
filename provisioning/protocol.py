"""The agent protocol's shapes, as the control plane reads them: every limit is a type, checked while it is decoded.

A node is not to be trusted: a body that does not fit is refused whole, with
the place and the reason. docs/agent.md says what each field means.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

VERSION = 2

# What the columns can hold; JSON's own whole numbers are exact up to 2^53.
BIGGEST, BIGGEST_INTEGER, BIGGEST_SMALL_INTEGER = 2**53, 2**31 - 1, 2**15 - 1
YEAR_MS = 366 * 24 * 3600 * 1000
REPORTS_MAX, GPUS_MAX, LINKS_MAX, EVENTS_MAX, VOLUMES_MAX = 500, 1024, 65_536, 500, 4096
LOG_PIECE_MAX = 256 * 1024
ARTIFACTS_MAX = 20_001  # A folder's files and its manifest.

# PostgreSQL keeps no NUL; the decoder itself refuses half of a surrogate pair.
STORABLE = r"\A[^\x00]*\Z"
Word = Annotated[str, Meta(max_length=20, pattern=STORABLE)]
Id = Annotated[str, Meta(max_length=32, pattern=STORABLE)]
Name = Annotated[str, Meta(max_length=64, pattern=STORABLE)]
Line = Annotated[str, Meta(max_length=255, pattern=STORABLE)]
Message = Annotated[str, Meta(max_length=2000, pattern=STORABLE)]
PublicKey = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Number = Annotated[int, Meta(ge=0, le=BIGGEST)]
Integer = Annotated[int, Meta(ge=0, le=BIGGEST_INTEGER)]
SmallInteger = Annotated[int, Meta(ge=0, le=BIGGEST_SMALL_INTEGER)]
AgoMs = Annotated[int, Meta(ge=0, le=YEAR_MS)]


class GpuFact(Struct, frozen=True, kw_only=True):
    """One GPU as its node reports it; `facts` are those that only people read."""

    uuid: Name
    index: SmallInteger
    model: Annotated[str, Meta(max_length=80, pattern=STORABLE)]
    memory_mib: Integer | None = None
    healthy: bool = False
    facts: dict[str, Any] = {}


class Link(Struct, frozen=True, kw_only=True):
    """How two GPUs of a node reach each other."""

    a: Name
    b: Name
    kind: Word


class Access(Struct, frozen=True, kw_only=True):
    """Where customers reach the node's SSH gateway; without a port it has none."""

    host: Line = ""
    ssh_port: Annotated[int, Meta(ge=1, le=65_535)] | None = None
    host_key: Annotated[str, Meta(max_length=1000, pattern=STORABLE)] = ""


class Inventory(Struct, frozen=True, kw_only=True):
    """What is built into a node, as of a generation."""

    generation: Number
    gpus: Annotated[list[GpuFact], Meta(max_length=GPUS_MAX)]
    source: Word = ""
    driver: Name | None = None
    access: Access = Access()
    encrypts: bool = False
    signing_key: PublicKey = ""
    links: Annotated[list[Link], Meta(max_length=LINKS_MAX)] = []

    def __post_init__(self) -> None:
        uuids, indices = {gpu.uuid for gpu in self.gpus}, {gpu.index for gpu in self.gpus}
        if len(uuids) != len(self.gpus) or len(indices) != len(self.gpus):
            raise ValueError("two GPUs share a uuid or an index")


class Progress(Struct, frozen=True, kw_only=True):
    """How far a long step is, such as pulling an image."""

    step: Word
    done_bytes: Number
    total_bytes: Number | None = None
    bytes_per_s: Number = 0


class Said(Struct, frozen=True, kw_only=True):
    """What a node says of one assignment."""

    id: Id
    fence: Number
    state: Literal["preparing", "prepared", "running", "exited", "failed", "wiping", "gone"]
    exit_code: Integer | None = None
    exited_ago_ms: AgoMs | None = None
    message: Message = ""
    progress: Progress | None = None
    ports: dict[Annotated[str, Meta(pattern=r"\A[0-9]{1,5}\Z")], Annotated[int, Meta(ge=1, le=65_535)]] = {}
    # The manifests of what it has sent: everything that was left behind, and the last checkpoint.
    outputs: Sha256 | None = None
    checkpoint: Sha256 | None = None


class LogPiece(Struct, frozen=True, kw_only=True):
    """Output of an assignment from a byte on; base64 on the wire."""

    assignment: Id
    offset: Number
    data: Annotated[bytes, Meta(max_length=LOG_PIECE_MAX)]


class VolumeSaid(Struct, frozen=True, kw_only=True):
    """What a node says of a volume that it keeps."""

    id: Id
    state: Literal["present", "gone", "failed"]
    used_bytes: Number | None = None
    message: Message = ""


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened on a node: told until it is acknowledged, taken once. `ago_ms`: null if nobody knows."""

    n: Number
    kind: Word
    ago_ms: AgoMs | None = None
    body: dict[str, Any] = {}


class Report(Struct, frozen=True, kw_only=True):
    """Everything that one node has to say."""

    node: Id
    key: Annotated[str, Meta(max_length=200, pattern=STORABLE)]
    boot_id: Name
    agent_epoch: Number
    seq: Number
    desired_seen: Number
    clock_ms: Number | None = None
    inventory: Inventory | None = None
    assignments: Annotated[list[Said], Meta(max_length=GPUS_MAX)] = []
    volumes: Annotated[list[VolumeSaid], Meta(max_length=VOLUMES_MAX)] = []
    events: Annotated[list[Event], Meta(max_length=EVENTS_MAX)] = []
    logs: Annotated[list[LogPiece], Meta(max_length=GPUS_MAX)] = []
    energy: Annotated[list[dict[str, Any]], Meta(max_length=GPUS_MAX)] = []
    telemetry: Annotated[list[dict[str, Any]], Meta(max_length=GPUS_MAX)] = []


class Sync(Struct, frozen=True, kw_only=True):
    """The body of a sync."""

    reports: Annotated[list[Report], Meta(max_length=REPORTS_MAX)]


class Introduction(Struct, frozen=True, kw_only=True):
    """The body of a join."""

    key_sha256: Sha256
    hostname: Line
    boot_id: Name
    agent_version: Annotated[str, Meta(max_length=40, pattern=STORABLE)]
    runtime: Word
    inventory: Inventory


class SecretsWanted(Struct, frozen=True, kw_only=True):
    """The body that asks for what a pull needs, or for what a gang's hosts share."""

    node: Id
    key: Annotated[str, Meta(max_length=200, pattern=STORABLE)]
    assignment: Id
    fence: Integer
    of: Literal["registry", "network"] = "registry"


class ArtifactsWanted(Struct, frozen=True, kw_only=True):
    """The body that asks which artifacts of an assignment must still be sent."""

    node: Id
    key: Annotated[str, Meta(max_length=200, pattern=STORABLE)]
    assignment: Id
    fence: Integer
    sha256s: Annotated[list[Sha256], Meta(max_length=ARTIFACTS_MAX)]


class Spoken(Struct, frozen=True):
    """The part of any body that says which protocol it is of; those before the second did not say."""

    protocol: int = 1
