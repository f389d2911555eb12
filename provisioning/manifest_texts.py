"""What the agent's code finds wrong in a manifest (`agent/manifest.py`, which knows no gettext), to be known again."""

from django.utils.translation import gettext_lazy as _

from provisioning.agent.manifest import BadManifest
from provisioning.told import Told, shown

FAULTS = (
    Told(_("a manifest has at most %(most)s bytes")),
    Told(_("it is not JSON")),
    Told(_("it is no list of files")),
    Told(_("it is not in the canonical form: sorted by path, no blanks, RFC 8785")),
    Told(_("a folder has at most %(most)s files")),
    Told(_("a path is there twice")),
    Told(_("%(path)s is a file and a folder")),
    Told(_("%(path)s is not text")),
    Told(_("%(path)s is not a relative path")),
    Told(_("%(path)s leads out of its folder, or is not in its shortest form")),
    Told(_("%(path)s is too long")),
    Told(_("entry %(number)s is not of path, sha256, size and mode")),
    Told(_("entry %(number)s has no path or no SHA-256")),
    Told(_("entry %(number)s has no size")),
    Told(_("entry %(number)s has no mode of permissions alone")),
)


def said(error: BadManifest) -> str:
    """Return what is wrong in the reader's language."""
    return shown(str(error))
