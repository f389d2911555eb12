"""The fleet map: sites, racks, nodes and GPUs as tiles, with every coordinate worked out here for the SVG."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import Any

from django.db.models import Count, Exists, Q, QuerySet, Sum
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from provisioning.health.wipes import LIVE_HOLD
from provisioning.models import Gpu, Node

# Above this many nodes a tile stands for a rack: nobody reads, and no browser likes, a hundred thousand tiles.
NODES_MAX = 200
RACKS_MAX = 400
TILES_PER_ROW = 8
TILE, GAP, LABEL_HEIGHT, NODE_GAP = 26, 2, 16, 8
LABEL_LENGTH_MAX, LETTER_WIDTH = 30, 7
SILENT = (Node.Reachability.SUSPECT, Node.Reachability.UNREACHABLE, Node.Reachability.LOST)
CLOSED = (Node.State.CORDONED, Node.State.DRAINING)


class Kind(StrEnum):
    """What a tile says. Each has a letter of its own, so that nobody depends on colour."""

    FREE = "free"
    HELD = "held"
    CLOSED = "closed"
    SILENT = "silent"
    BROKEN = "broken"
    ABSENT = "absent"


LETTERS = {
    Kind.FREE: "F",
    Kind.HELD: "H",
    Kind.CLOSED: "C",
    Kind.SILENT: "S",
    Kind.BROKEN: "X",
    Kind.ABSENT: "N",
}
MEANINGS: dict[Kind, Promise] = {
    Kind.FREE: _("free"),
    Kind.HELD: _("held"),
    Kind.CLOSED: _("not for sale now"),
    Kind.SILENT: _("node silent"),
    Kind.BROKEN: _("GPU not healthy"),
    Kind.ABSENT: _("not joined"),
}


@dataclass(frozen=True)
class Tile:
    """One GPU at its place in the rack's drawing."""

    kind: Kind
    index: int
    x: int
    y: int

    @property
    def text(self) -> str:
        return f"{LETTERS[self.kind]}{self.index}"

    @property
    def middle(self) -> tuple[int, int]:
        return self.x + TILE // 2, self.y + TILE // 2


@dataclass(frozen=True)
class Shelf:
    """A node in the rack's drawing: its name on top, its GPUs below."""

    node: Node
    y: int
    tiles: Sequence[Tile]

    @property
    def label(self) -> str:
        name = self.node.name
        return name if len(name) <= LABEL_LENGTH_MAX else f"{name[: LABEL_LENGTH_MAX - 1]}…"

    @property
    def label_y(self) -> int:
        return self.y + LABEL_HEIGHT - 4

    @property
    def counts(self) -> list[tuple[int, Promise]]:
        kinds = [tile.kind for tile in self.tiles]
        return [(kinds.count(kind), MEANINGS[kind]) for kind in Kind if kind in kinds]


@dataclass(frozen=True)
class Rack:
    """A rack with its nodes, or, where the fleet is big, with its sums alone."""

    name: str
    shelves: Sequence[Shelf] = ()
    width: int = 0
    height: int = 0
    gpus: int = 0
    free: int = 0
    silent_nodes: int = 0

    @property
    def used_percent(self) -> int:
        return 100 * (self.gpus - self.free) // self.gpus if self.gpus else 0

    @property
    def level(self) -> int:
        """The step, 0 to 4, of the scale by which the rack is coloured."""
        return min(4, self.used_percent // 20)


@dataclass(frozen=True)
class SiteMap:
    """The racks of one site, or its sum alone where the fleet has too many of them."""

    slug: str
    name: str
    racks: Sequence[Rack] = ()
    whole: Rack | None = None


@dataclass(frozen=True)
class FleetMap:
    """The whole map; `by_rack` tells that a tile is a rack (or a site), `is_cut` that more exist."""

    sites: Sequence[SiteMap]
    by_rack: bool
    is_cut: bool = False
    tile: int = TILE
    legend: Sequence[tuple[Kind, str, Promise]] = field(
        default_factory=lambda: [(kind, LETTERS[kind], MEANINGS[kind]) for kind in Kind]
    )


def drawn(*, site: str = "", rack: str = "") -> FleetMap:
    """Return the map of the fleet, of a site (by its slug) or of one of its racks. At most three queries."""
    nodes = Node.objects.exclude(state=Node.State.RETIRED)
    if site:
        nodes = nodes.filter(fabric__site__slug=site)
    if rack:
        nodes = nodes.filter(rack=rack)
    chosen = list(nodes.select_related("fabric__site").order_by("fabric__site__name", "rack", "name")[: NODES_MAX + 1])
    if len(chosen) > NODES_MAX:
        return _by_rack(nodes, site=site)
    return FleetMap(sites=_by_node(chosen), by_rack=False)


def _by_node(chosen: Sequence[Node]) -> list[SiteMap]:
    gpus: dict[int, list[Gpu]] = {node.pk: [] for node in chosen}
    for gpu in Gpu.objects.filter(node__in=list(gpus)).annotate(is_held=Exists(LIVE_HOLD)).order_by("index"):
        gpus[gpu.node_id].append(gpu)
    sites = []
    for site, of_site in groupby(chosen, key=lambda node: node.fabric.site):
        racks = [_rack(name, of_rack, gpus) for name, of_rack in groupby(of_site, key=lambda node: node.rack)]
        sites.append(SiteMap(slug=site.slug, name=site.name, racks=racks))
    return sites


def _rack(name: str, nodes: Iterable[Node], gpus: dict[int, list[Gpu]]) -> Rack:
    shelves, y, width = [], 0, 0
    for node in nodes:
        tiles = _tiles(node, gpus[node.pk], y + LABEL_HEIGHT)
        shelves.append(Shelf(node=node, y=y, tiles=tiles))
        row_width = min(len(tiles), TILES_PER_ROW) * (TILE + GAP) - GAP
        width = max(width, row_width, min(len(node.name), LABEL_LENGTH_MAX) * LETTER_WIDTH)
        y = (tiles[-1].y + TILE if tiles else y + LABEL_HEIGHT) + NODE_GAP
    return Rack(name=name, shelves=shelves, width=width, height=y - NODE_GAP)


def _tiles(node: Node, gpus: Sequence[Gpu], top: int) -> list[Tile]:
    kinds = [(gpu.index, _kind(node, gpu)) for gpu in gpus]
    if not gpus:
        kinds = [(index, Kind.ABSENT) for index in range(node.gpu_count)]
    return [
        Tile(
            kind=kind,
            index=index,
            x=place % TILES_PER_ROW * (TILE + GAP),
            y=top + place // TILES_PER_ROW * (TILE + GAP),
        )
        for place, (index, kind) in enumerate(kinds)
    ]


def _kind(node: Node, gpu: Gpu) -> Kind:
    if not gpu.healthy or gpu.state == Gpu.State.QUARANTINED:
        return Kind.BROKEN
    if node.reachability in SILENT:
        return Kind.SILENT
    if gpu.is_held:  # type: ignore[attr-defined]
        return Kind.HELD
    is_for_sale = node.state not in CLOSED and not node.is_held and gpu.state == Gpu.State.CLEAN
    return Kind.FREE if is_for_sale else Kind.CLOSED


def _by_rack(nodes: QuerySet[Node], *, site: str) -> FleetMap:
    """Draw a rack as a tile, or a whole site where there are too many racks of several sites."""
    rows = _sums(nodes, "fabric__site__slug", "fabric__site__name", "rack")
    is_cut = len(rows) > RACKS_MAX
    if is_cut and not site:
        wholes = _sums(nodes, "fabric__site__slug", "fabric__site__name")
        sites = [
            SiteMap(slug=row["fabric__site__slug"], name=row["fabric__site__name"], whole=_summed("", row))
            for row in wholes
        ]
        return FleetMap(sites=sites, by_rack=True)
    sites = []
    by_site = groupby(rows[:RACKS_MAX], key=lambda row: (row["fabric__site__slug"], row["fabric__site__name"]))
    for (slug, name), of_site in by_site:
        sites.append(SiteMap(slug=slug, name=name, racks=[_summed(row["rack"], row) for row in of_site]))
    return FleetMap(sites=sites, by_rack=True, is_cut=is_cut)


def _sums(nodes: QuerySet[Node], *domain: str) -> list[dict[str, Any]]:
    sellable = Q(state=Node.State.AVAILABLE, reachability=Node.Reachability.ONLINE, is_held=False)
    summed = nodes.values(*domain).annotate(
        gpu_total=Sum("gpu_count"),
        free=Sum("free_gpus", default=0, filter=sellable),
        silent=Count("pk", filter=Q(reachability__in=SILENT)),
    )
    return list(summed.order_by(*domain[1:])[: RACKS_MAX + 1])


def _summed(name: str, row: dict[str, Any]) -> Rack:
    return Rack(name=name, gpus=row["gpu_total"], free=row["free"], silent_nodes=row["silent"])
