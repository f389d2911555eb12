"""Cuts a node off for minutes, with the leases of the product: `python -m tests.scenarios.cut --minutes 10 --json`."""

import argparse
import json
import os
import sys
import time

from tests import schema
from tests.bench import stage

MINUTE_S = 60


def main() -> int:
    """Play the scene with servers of its own and print what was seen. Returns 1 where it is not as promised."""
    parser = argparse.ArgumentParser("tests.scenarios.cut", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="how long the node is cut off (default: 10)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    with stage.set_up() as servers:
        os.environ.update(servers.environ)
        return run(options.minutes * MINUTE_S, is_json=options.json, home=servers.home)


def run(cut_s: float, *, is_json: bool, home: object) -> int:
    """Make the world and play; Django is set up here, once its servers run."""
    import django

    django.setup()
    from pathlib import Path

    schema.fill()
    from marketplace.access import person
    from marketplace.models import Project
    from provisioning.models import Fabric, Site
    from tests.conftest import make_offer, make_organization, make_person
    from tests.scenarios.play import Times, play
    from tests.scenarios.test_cut import check

    owner = make_person("owner@example.com")
    project = Project.objects.select_related("organization").get(organization=make_organization("Customer", owner))
    operator = make_organization("Operator", make_person("operator@example.com"), credit_micros=0)
    site = Site.objects.create(
        slug="here", name="Here", city="Here", country="NO", jurisdiction="NO", latitude=0, longitude=0,
        grid_zone="NO4", power_source="hydro", pue="1.10",
    )  # fmt: skip
    offer = make_offer(operator, site, slug="cut", gpu_model="H200", price_micros=2_490_000)
    fabric = Fabric.objects.create(site=site, name="fabric-1", kind="ethernet")
    folder = Path(str(home)) / "agents"
    folder.mkdir()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    seen = play(
        Times(cut=cut_s), folder=folder, actor=person(owner), project=project, offer=offer, fabric=fabric, say=say
    )
    try:
        check(seen)
        is_kept = True
    except AssertionError as error:
        say(f"not as promised: {error}")
        is_kept = False
    found = seen.as_json() | {"is_as_promised": is_kept}
    print(json.dumps(found, indent=2) if is_json else "\n".join(f"{name}: {value}" for name, value in found.items()))
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
