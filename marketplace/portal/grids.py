"""Many tasks as a picture: a square for each, in the colour of its state. The template only writes it down."""

from collections.abc import Sequence
from dataclasses import dataclass

STEP = 10
SIDE = 8
# So many squares stand beside each other, the wider the more there are.
WIDTHS = ((400, 25), (2_500, 50), (10_000, 100))


@dataclass(frozen=True)
class Layer:
    """All squares of one state, as one path."""

    state: str
    path: str


@dataclass(frozen=True)
class Grid:
    """Width and height of the drawing, and its squares by state."""

    width: int
    height: int
    layers: list[Layer]

    @property
    def shown(self) -> int:
        """How wide it is drawn where there is room, in pixels: few tasks are no giants."""
        return self.width * 2


def of(states: Sequence[str]) -> Grid:
    """Return the grid of tasks in these states, in their order, row by row."""
    across = next((width for most, width in WIDTHS if len(states) <= most), WIDTHS[-1][1])
    across = min(across, max(1, len(states)))
    paths: dict[str, list[str]] = {}
    for number, state in enumerate(states):
        row, column = divmod(number, across)
        paths.setdefault(state, []).append(f"M{column * STEP} {row * STEP}h{SIDE}v{SIDE}h-{SIDE}z")
    rows = -(-len(states) // across)
    layers = [Layer(state, "".join(parts)) for state, parts in paths.items()]
    return Grid(width=across * STEP, height=rows * STEP, layers=layers)
