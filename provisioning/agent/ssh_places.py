"""Which door an SSH user name means, and which keys open it: read from the document, never remembered.

A user name is an instance's name or id, with `.N` for one replica of several. Names belong to projects, so two tenants
on one node may have the same: the key decides, and where it opens both, neither opens and the id must be used.
"""

import base64
import binascii
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from provisioning.agent.protocol import Assignment, Document
from provisioning.agent.runtime import Runtime
from provisioning.agent.workloads import Workload


@dataclass(frozen=True)
class Place:
    """The inside of one workload, as somebody with one key may enter it. `key` is the key as SSH sends it."""

    assignment: str
    fence: int
    instance: str
    name: str
    key: bytes
    workload: Workload

    def answers_to(self, host: str) -> bool:
        """Return whether a forwarded port's host means the workload itself."""
        return host in {"localhost", "127.0.0.1", "::1", self.instance, self.name}


class Places:
    """Looks at what this node should run and what it does run, at every question anew."""

    def __init__(self, *, document: Callable[[], Document], runtime: Runtime) -> None:
        self._document = document
        self._runtime = runtime

    def admit(self, user: str, key: bytes) -> Place | None:
        """Return where this user with this key may go now, or None: nobody is told which of the two was wrong."""
        found = [one for one in self._named(user) if key in keys_of(one)]
        places = [place for one in found if (place := self._place(one, key)) is not None]
        return places[0] if len({place.instance for place in places}) == 1 else None

    def is_open(self, place: Place) -> bool:
        """Return whether that place runs on and the key still opens it."""
        return self.shut_because(place) == ""

    def shut_because(self, place: Place) -> str:
        """Return why a place is closed to who came in earlier, or nothing."""
        wanted = self._document().find(place.assignment)
        if wanted is None or wanted.fence != place.fence or self._place(wanted, place.key) is None:
            return f"{place.name} does not run here any more"
        return "" if place.key in keys_of(wanted) else "this key was removed from the project"

    def meant(self, user: str) -> str:
        """Return the assignment that a user name means, or nothing: for the record of refusals.

        A name that several instances have means none of them: the refusal would be on a stranger's record.
        """
        named = list(self._named(user))
        by_id = [one for one in named if user in {one.instance, f"{one.instance}.{one.replica}"}]
        found = by_id or named
        return found[0].id if len({one.instance for one in found}) == 1 else ""

    def _named(self, user: str) -> Iterator[Assignment]:
        for one in sorted(self._document().assignments, key=lambda one: one.replica):
            names = [name for name in (one.name, one.instance) if name]
            if user in names or user in {f"{name}.{one.replica}" for name in names}:
                yield one

    def _place(self, wanted: Assignment, key: bytes) -> Place | None:
        workload = self._runtime.running(wanted.id, wanted.fence) if wanted.desired == "running" else None
        if workload is None:
            return None
        return Place(wanted.id, wanted.fence, wanted.instance, wanted.name or wanted.instance, key, workload)


def keys_of(wanted: Assignment) -> frozenset[bytes]:
    """Return the keys of the project as SSH sends them. A line that is none opens nothing."""
    found = set()
    for line in wanted.ssh_keys:
        words = line.split()
        try:
            found.add(base64.b64decode(words[1], validate=True))
        except (IndexError, binascii.Error, ValueError):
            continue
    return frozenset(found)
