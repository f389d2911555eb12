"""What the parser finds wrong in a file that is not YAML, in its own words, to be known again."""

import yaml
from django.utils.translation import gettext_lazy as _

from provisioning.told import Told, shown

FAULTS = (
    Told(_("mapping values are not allowed in this context")),
    Told(_("found character that cannot start any token")),
    Told(_("found unexpected end of stream")),
    Told(_("found unknown escape character")),
    Told(_("found unknown directive name")),
    Told(_("did not find expected node content")),
    Told(_("did not find expected key")),
    Told(_("did not find expected comment or line break")),
    Told(_("did not find expected '-' indicator")),
    Told(_("did not find expected ',' or ']'")),
    Told(_("did not find expected ',' or '}'")),
    Told(_("could not find expected ':'")),
    Told(_("but found another document")),
)


def said(error: yaml.MarkedYAMLError) -> str:
    """Return what is wrong in the reader's language, where the parser's words are known."""
    return shown(error.problem or error.context or "?")
