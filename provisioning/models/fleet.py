"""The fleet: sites, fabrics, nodes, GPUs, and how a node is known to be alive."""

from django.db import models
from django.db.models import F, Func, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField


class Site(models.Model):
    """A data centre or an edge location. Policy reads these columns, so they are facts and not labels."""

    class Kind(models.TextChoices):
        CORE = "core", _("Data centre")
        EDGE = "edge", _("Edge site")

    class VolumeKind(models.TextChoices):
        LOCAL = "local", _("On the disk of one node")
        SHARED = "shared", _("On a path that all nodes share")

    public_id = PublicIdField(prefix="sit")
    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=100)
    kind = models.CharField(max_length=4, choices=Kind.choices, default=Kind.CORE)
    city = models.CharField(max_length=100)
    country = models.CharField(max_length=2, help_text="ISO 3166-1 alpha-2 of the ground it stands on")
    jurisdiction = models.CharField(max_length=2, help_text="ISO 3166-1 alpha-2 of the law its operator answers to")
    latitude = models.DecimalField(max_digits=8, decimal_places=5)
    longitude = models.DecimalField(max_digits=8, decimal_places=5)
    grid_zone = models.CharField(max_length=20)
    power_source = models.CharField(max_length=40)
    pue = models.DecimalField(
        max_digits=4, decimal_places=2, help_text="power usage effectiveness: total over IT power"
    )
    certifications = models.JSONField(default=list, blank=True)
    volume_kind = models.CharField(
        max_length=6, choices=VolumeKind.choices, default=VolumeKind.LOCAL, help_text="where its volumes lie"
    )

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(pue__gte=1), name="site_pue_is_at_least_one")]

    def __str__(self) -> str:
        return self.name

    @property
    def storage_sku(self) -> str:
        """The name under which its storage has a price per GiB-hour."""
        return f"storage:{self.public_id}"


class Fabric(models.Model):
    """A fast-network domain inside a site: the outermost level at which a gang still talks at full speed."""

    class Kind(models.TextChoices):
        INFINIBAND = "infiniband", "InfiniBand"
        ROCE = "roce", "RoCE"
        NVLINK = "nvlink", "NVLink"
        ETHERNET = "ethernet", "Ethernet"

    public_id = PublicIdField(prefix="fab")
    site = models.ForeignKey(Site, models.PROTECT, related_name="fabrics")
    name = models.CharField(max_length=100)
    kind = models.CharField(max_length=10, choices=Kind.choices)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["site", "name"], name="fabric_name_once_per_site")]

    def __str__(self) -> str:
        return f"{self.site} · {self.name}"


class BitCount(Func):
    """How many bits of a mask are set."""

    template = "bit_count(%(expressions)s::bit(64))::smallint"
    output_field = models.PositiveSmallIntegerField()


class Node(models.Model):
    """One GPU host. `free_mask` is kept beside the holds, so that a claim can be checked in this row alone.

    `changed` is the number of the last transaction that changed what placement
    reads of it, kept by a trigger: how snapshots in memory find what is new.
    """

    class State(models.TextChoices):
        NEW = "new", _("Waiting to join")
        AVAILABLE = "available", _("Available")
        CORDONED = "cordoned", _("Cordoned")
        DRAINING = "draining", _("Draining")
        RETIRED = "retired", _("Retired")

    class Reachability(models.TextChoices):
        UNKNOWN = "unknown", _("Never seen")
        ONLINE = "online", _("Online")
        SUSPECT = "suspect", _("Suspect")
        UNREACHABLE = "unreachable", _("Unreachable")
        LOST = "lost", _("Lost")

    class Kept(models.TextChoices):
        FOR_ALL = "", _("For everybody")
        QUEUE = "queue", _("For an order that waits")
        BLOCK = "block", _("For a reservation of whole nodes")

    public_id = PublicIdField(prefix="nod")
    name = models.SlugField(max_length=63, unique=True)
    fabric = models.ForeignKey(Fabric, models.PROTECT, related_name="nodes")
    offer = models.ForeignKey("marketplace.Offer", models.PROTECT, related_name="nodes", db_index=False)
    rack = models.CharField(max_length=40)
    gpu_model = models.CharField(max_length=80)
    gpu_count = models.PositiveSmallIntegerField()
    gpu_memory_mib = models.PositiveIntegerField()
    free_mask = models.BigIntegerField(default=0, help_text="a bit for each GPU, by its index, that may be placed on")
    free_gpus = models.GeneratedField(
        expression=BitCount("free_mask"), output_field=models.PositiveSmallIntegerField(), db_persist=True
    )
    is_held = models.BooleanField(default=False, help_text="a live NodeHold names it; kept beside them for placement")
    state = models.CharField(max_length=10, choices=State.choices, default=State.NEW)
    state_reason = models.CharField(max_length=200, blank=True)
    reachability = models.CharField(max_length=12, choices=Reachability.choices, default=Reachability.UNKNOWN)
    driver = models.CharField(max_length=10, default="agent")
    key_hash = models.CharField(max_length=64, blank=True)
    desired_generation = models.BigIntegerField(default=1)
    nvlink_groups = models.JSONField(default=list, help_text="masks of GPU indices; none where all are one group")
    exclusive_to = models.ForeignKey(
        "marketplace.Organization", models.PROTECT, null=True, related_name="+",
        help_text="the tenant whose policy lets nobody else in while anything of theirs is here",
    )  # fmt: skip
    kept_for = models.CharField(
        max_length=6, choices=Kept.choices, blank=True, default="", db_default="", help_text="whose place it is to be"
    )
    changed = models.BigIntegerField(default=0, editable=False)
    created_at = models.DateTimeField(default=timezone.now)
    joined_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(free_gpus__lte=F("gpu_count")), name="node_never_has_more_free_than_it_has"
            ),
        ]
        indexes = [
            models.Index(fields=["offer", "changed"], name="node_changed"),
            models.Index(fields=["offer"], condition=~Q(kept_for=""), name="node_kept"),
        ]

    def __str__(self) -> str:
        return self.name


class Heartbeat(models.Model):
    """When a node last called. Apart from Node and without an index on `last_seen`, so that each update stays cheap."""

    node = models.OneToOneField(Node, models.CASCADE, primary_key=True)
    boot_id = models.CharField(max_length=64)
    agent_epoch = models.BigIntegerField()
    seq = models.BigIntegerField()
    last_seen = models.DateTimeField()
    hostname = models.CharField(max_length=255)
    agent_version = models.CharField(max_length=40)
    runtime = models.CharField(max_length=20)
    gpu_source = models.CharField(max_length=20)
    inventory_generation = models.BigIntegerField(default=0)
    telemetry = models.JSONField(default=list)
    energy = models.JSONField(default=list)
    events_seen = models.BigIntegerField(default=0, help_text="the last entry of the node's journal that was taken")
    access = models.JSONField(default=dict, help_text="where customers reach its SSH gateway, and its host key")
    encrypts = models.BooleanField(default=False, help_text="it can encrypt what goes between the nodes of a gang")
    stray_volumes = models.JSONField(default=list, help_text="folders among its volumes that are none of ours")
    clock_skew_ms = models.BigIntegerField(null=True, help_text="the node's wall clock minus ours")

    def __str__(self) -> str:
        return f"{self.node} at {self.last_seen}"


class NodeHold(models.Model):
    """A reason of ours to place nothing on a node. Apart from the manager's cordon, so that neither lifts the other."""

    class Kind(models.TextChoices):
        INVENTORY_CHANGED = "inventory_changed", _("Its GPUs are not those that it had")
        HEALTH = "health", _("A fault of the node or its GPUs")
        GATE = "gate", _("It has not passed its check yet")
        SLURM = "slurm", _("Slurm holds it back")

    node = models.ForeignKey(Node, models.CASCADE, related_name="holds")
    kind = models.CharField(max_length=20, choices=Kind.choices)
    reason = models.CharField(max_length=200)
    placed_at = models.DateTimeField()
    released_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["node", "kind"], condition=Q(released_at=None), name="node_held_once_for_each_kind"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}"


class NodeInventory(models.Model):
    """What a node last said is built into it. Its Gpu rows are what was accepted; where the two differ, it is held."""

    node = models.OneToOneField(Node, models.CASCADE, primary_key=True, related_name="inventory")
    driver = models.CharField(max_length=64, blank=True, help_text="version of the GPU driver")
    gpus = models.JSONField(default=list)
    links = models.JSONField(default=list, help_text="{a, b, kind} for each pair of GPUs that told")
    told_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"inventory of {self.node}"


class JoinToken(models.Model):
    """Lets one announced node in, once; kept as a hash."""

    node = models.ForeignKey(Node, models.CASCADE, related_name="join_tokens")
    secret_hash = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, blank=True)
    key_hash = models.CharField(max_length=64, blank=True)

    def __str__(self) -> str:
        return f"join token of {self.node}"


class Gpu(models.Model):
    """One physical GPU. It can be placed when it is healthy, clean, and no live hold names it."""

    class State(models.TextChoices):
        """What lies between two tenants; only what is clean is placed, and only a proof makes it clean."""

        CLEAN = "clean", _("Clean")
        DIRTY = "dirty", _("To be wiped")
        WIPING = "wiping", _("Being wiped")
        VERIFYING = "verifying", _("Being verified")
        QUARANTINED = "quarantined", _("Quarantined")

    public_id = PublicIdField(prefix="gpu")
    node = models.ForeignKey(Node, models.PROTECT, related_name="gpus")
    uuid = models.CharField(max_length=64, unique=True)
    index = models.PositiveSmallIntegerField()
    memory_mib = models.PositiveIntegerField(null=True, help_text="null where the GPU does not tell")
    healthy = models.BooleanField(default=True)
    state = models.CharField(max_length=12, choices=State.choices, default=State.CLEAN)
    state_reason = models.CharField(max_length=200, blank=True)
    facts = models.JSONField(default=dict, help_text="what it says it is; null is what it does not tell")
    nvlinks = models.JSONField(
        null=True, help_text="numbers of the NVLinks that it was accepted with or had since; null where it told of none"
    )
    removed_at = models.DateTimeField(null=True, help_text="taken out of its node, as a manager accepted")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["node", "index"], condition=Q(removed_at=None), name="gpu_index_once_per_node"
            ),
            models.CheckConstraint(condition=Q(removed_at=None) | Q(healthy=False), name="gpu_removed_is_not_healthy"),
        ]

    def __str__(self) -> str:
        return self.uuid


class GpuHold(models.Model):
    """An instance's claim on one GPU, from placement until the node confirmed that nothing is left."""

    gpu = models.ForeignKey(Gpu, models.PROTECT, related_name="holds")
    assignment = models.ForeignKey("provisioning.Assignment", models.PROTECT, related_name="holds")
    taken_at = models.DateTimeField()
    released_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["gpu"], condition=Q(released_at=None), name="gpu_held_by_one_at_a_time"),
        ]

    def __str__(self) -> str:
        return f"{self.gpu} for {self.assignment}"
