"""Writing what was downloaded into a file."""

from pathlib import Path

from marketplace.cli.problems import problem


def save(path: Path, content: bytes, *, title: str) -> None:
    """Write a new file; one that is there already is not written over."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except OSError as error:
        raise problem(
            code="not_saved", title=title, detail=f"{path}: {error.strerror}.",
            suggestion="Name another file: --output FILE",
        ) from error  # fmt: skip
