"""What is asked of placement and what it answers: plain values, so that a choice can be made again and compared."""

from dataclasses import dataclass, field
from typing import NamedTuple

# From tightest to widest. An offer lives in one site, so its site is all of its nodes.
LEVELS = ("nvlink", "node", "rack", "fabric", "site")
WIDTH = {level: width for width, level in enumerate(LEVELS)}
SPREAD_OVER = ("node", "rack", "fabric")

# Why a node cannot take part, in the order in which it is asked; a node counts for the first that holds.
RULES = ("state", "unreachable", "held", "barred", "kept", "another_tenant", "avoided", "not_whole", "full", "too_few")


@dataclass(frozen=True, slots=True)
class Request:
    """`replicas` x `gpus` GPUs, all or nothing.

    `pack` brings them together: on the lowest level that has room, up to
    `level` where that `is_required`. `spread` deals them out evenly over the
    domains of `level`; where that `is_required`, their counts differ by at most
    `max_skew`. `is_exclusive` wants nodes with nobody else's instances on them;
    `owner` is whose. `home` is the one node that will do. Nodes to `avoid` are
    left out of this choice, those that are `barred` out of every choice, and
    those `kept` for others out of it until their turn is over. `tie`
    settles what is equal otherwise: the same for the same request, another for
    another.
    """

    replicas: int
    gpus: int
    strategy: str = "pack"
    level: str = "site"
    is_required: bool = False
    max_skew: int = 1
    owner: int = 0
    is_exclusive: bool = False
    home: int = 0
    avoid: frozenset[int] = frozenset()
    barred: frozenset[int] = frozenset()
    kept: frozenset[int] = frozenset()
    tie: int = 0


class Choice(NamedTuple):
    """Where each replica goes: its node's id and the mask of its GPUs' indices; and the level they share."""

    level: str
    places: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was chosen.

    `rejected` counts nodes by the first rule that kept each out, `candidates`
    those that could take a replica; `most` is the most replicas that fit into
    one domain, by level. `relaxation` is the cheapest change with which it
    would fit now: one of level, max_skew, replicas, gpus, no_shared_host; empty
    where none would do.
    """

    candidates: int
    rejected: dict[str, int]
    most: dict[str, int]
    relaxation: dict[str, str | int] = field(default_factory=dict)
