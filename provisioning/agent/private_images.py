"""Which images are on this node only because somebody with a login brought them.

The marks have a folder of their own, so that none is lost with the workload that made it. Whoever else wants such an
image asks its registry anew. An image goes, and its mark with it, when no container has it and none is being made.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provisioning.agent.files import read_json, write_json
from provisioning.agent.podman import Podman, PodmanError

OLD_MARK = "private.json"  # In a workload's folder, where earlier agents kept it.


class PrivateImages:
    """The marks of one agent's home. Any thread may ask."""

    def __init__(self, podman: Podman, *, folder: Path, workloads: Path) -> None:
        self._podman = podman
        self._folder = folder
        self._guard = threading.RLock()
        self._wanted: Counter[str] = Counter()
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in workloads.glob(f"*/{OLD_MARK}"):
            self._adopt(read_json(path))
            path.unlink()

    def _adopt(self, old: Any) -> None:
        """Keep the mark of an earlier agent: a name alone, or a name and an ID."""
        if isinstance(old, str) and old:
            self.mark(old, self._id(old))
        elif isinstance(old, dict) and old.get("image"):
            self.mark(str(old["image"]), str(old.get("id", "")))

    @contextmanager
    def wanted(self, image: str) -> Iterator[None]:
        """Keep an image from being removed while a container of it is made."""
        with self._guard:
            self._wanted[image] += 1
        try:
            yield
        finally:
            with self._guard:
                self._wanted[image] -= 1

    def mark(self, image: str, image_id: str) -> None:
        """Write down that an image is private. Its ID is empty as long as it is not here."""
        with self._guard:
            write_json(self._path(image, image_id), {"image": image, "id": image_id})
            if image_id:
                self._path(image, "").unlink(missing_ok=True)

    def covers(self, image: str, image_id: str) -> bool:
        """Return whether an image is private, under this name or another."""
        return any(image == name or (image_id and image_id == known) for _, name, known in self._marks())

    def tidy(self) -> None:
        """Remove every private image that nobody uses or is about to. Raises PodmanError."""
        with self._guard:
            marks = self._marks()
            if not marks:
                return
            used = {one["ImageID"] for one in self._podman.ask("ps", "--all", "--external", "--format", "json")}
            for path, image, image_id in marks:
                known = image_id or self._id(image)
                if self._wanted[image] or known in used or not self._is_removed(image, known):
                    continue
                path.unlink()

    def _is_removed(self, image: str, image_id: str) -> bool:
        """Remove an image; False where somebody uses it after all."""
        # Its name may mean another one by now, which has a mark of its own.
        name = image if self._id(image) == image_id else image_id
        if not name:
            return True
        try:
            self._podman.run("image", "rm", name)
        except PodmanError as error:
            said = str(error)
            if "in use" in said:
                return False
            # Where it has other names, each of them decides for itself.
            if not any(word in said for word in ("image not known", "more than one tag")):
                raise
        return True

    def _id(self, image: str) -> str:
        try:
            return self._podman.run("image", "inspect", "--format", "{{.Id}}", image).strip()
        except PodmanError:
            return ""

    def _marks(self) -> list[tuple[Path, str, str]]:
        found = [(path, read_json(path)) for path in sorted(self._folder.glob("*.json"))]
        return [(path, mark["image"], mark["id"]) for path, mark in found if mark]

    def _path(self, image: str, image_id: str) -> Path:
        return self._folder / f"{hashlib.sha256(f'{image} {image_id}'.encode()).hexdigest()[:32]}.json"
