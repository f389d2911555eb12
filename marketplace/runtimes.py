"""What an offer's runtime asks of an order: an image and its ports, or a command alone."""

from collections.abc import Sequence

from django.utils.translation import gettext

from marketplace.errors import BadOrder
from marketplace.models import Offer
from provisioning import images

PORTS_MAX = 20
PORT_MAX = 65_535


def check(*, offer: Offer, image: str, ports: Sequence[int], command: Sequence[str]) -> None:
    """Raise BadOrder for what the offer's runtime cannot run, naming the field.

    With an image the command may be empty: then the image's own one runs.
    """
    takes_image = offer.runtime == Offer.Runtime.PODMAN
    if takes_image:
        _check_image(offer, image)
        _check_ports(ports)
    elif image:
        raise BadOrder("image", gettext("%(offer)s runs commands without an image; leave it out.") % _named(offer))
    elif ports:
        raise BadOrder(
            "ports",
            gettext("%(offer)s publishes no ports: its commands run on the node itself. Forward one over SSH instead.")
            % _named(offer),
        )
    if not command and not takes_image:
        raise BadOrder("command", gettext("Say what to run, as a list of the program and its arguments."))


def normal_image(image: str) -> str:
    """Return the one form of an image's name; an order that was checked has a good one or none."""
    return str(images.parse(image)) if image else ""


def _check_image(offer: Offer, image: str) -> None:
    if not image:
        raise BadOrder(
            "image",
            gettext("%(offer)s runs images; name one, such as registry.example.com/team/image:1.0.") % _named(offer),
        )
    try:
        images.parse(image)
    except images.BadImage as error:
        raise BadOrder("image", str(error)) from error


def _check_ports(ports: Sequence[int]) -> None:
    if len(ports) > PORTS_MAX:
        raise BadOrder("ports", gettext("An instance publishes at most %(most)s ports.") % {"most": PORTS_MAX})
    for port in ports:
        if not 1 <= port <= PORT_MAX:
            raise BadOrder("ports", gettext("A port is a number from 1 to %(most)s.") % {"most": PORT_MAX})
    if len(set(ports)) != len(ports):
        raise BadOrder("ports", gettext("Name each port once."))


def _named(offer: Offer) -> dict[str, str]:
    return {"offer": offer.name}
