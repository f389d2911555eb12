"""What an instance runs: an OCI image, named so exactly that it means the same on every node."""

import re
from dataclasses import dataclass

from django.utils.translation import gettext as _

LENGTH_MAX = 500
NAME_LENGTH_MAX = 255
# The grammar of the OCI distribution specification and its reference implementation.
HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*(?::([0-9]{1,5}))?")
PATH_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")  # The nodes know no other.
PORT_MAX = 65_535


class BadImage(ValueError):
    """It is no image reference; the message says what to change."""


@dataclass(frozen=True)
class Reference:
    """An image in a registry. At least one of `tag` and `digest` is there."""

    host: str
    path: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.path}{tag}{digest}"


def parse(text: str) -> Reference:
    """Return what an image reference names, or raise BadImage.

    Registry and version are asked for outright: a bare name means another
    image wherever the node's search list differs, and a missing tag another
    one tomorrow, when the instance is started again.
    """
    if len(text) > LENGTH_MAX:
        raise BadImage(_("An image's name has at most %(most)s characters.") % {"most": LENGTH_MAX})
    if "://" in text:
        raise BadImage(_("Leave out the scheme: write registry.example.com/team/image:1.0."))
    name, at, digest = text.partition("@")
    if at and not DIGEST.fullmatch(digest):
        raise BadImage(_("A digest is sha256: and 64 digits or letters from a to f."))
    host, slash, rest = name.partition("/")
    path, colon, tag = rest.partition(":")
    if not slash or not ({".", ":"} & set(host) or host.lower() == "localhost"):
        raise BadImage(_("Begin with the registry's host, as in registry.example.com/team/image:1.0."))
    host = host_of_registry(host)
    _check_path(path, host)
    if colon and not TAG.fullmatch(tag):
        raise BadImage(_("A tag has 1 to 128 letters, digits, points, hyphens and underscores."))
    if not tag and not digest:
        raise BadImage(_("Say which version: add a tag such as :1.0, or a digest such as @sha256:…"))
    return Reference(host=host, path=path, tag=tag, digest=digest)


def host_of_registry(text: str) -> str:
    """Return a registry's host in its one form, with its port if it has one, or raise BadImage."""
    host = text.lower()
    found = HOST.fullmatch(host)
    if found is None or len(host) > NAME_LENGTH_MAX or (found[1] and not 1 <= int(found[1]) <= PORT_MAX):
        raise BadImage(_("A registry is a host such as registry.example.com, with a port if need be."))
    return host


def _check_path(path: str, host: str) -> None:
    if path != path.lower():
        raise BadImage(_("An image's name has no capital letters; a tag may."))
    parts = path.split("/")
    if not all(PATH_PART.fullmatch(part) for part in parts) or len(host) + len(path) >= NAME_LENGTH_MAX:
        raise BadImage(
            _("After the registry stands the image's name: lower-case letters, digits, points, hyphens and slashes.")
        )
