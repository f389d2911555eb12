"""An order for an instance: read from the command line, placed once, and never twice."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from marketplace.cli import words
from marketplace.cli.amounts import amount
from marketplace.cli.offers import cheapest_first, find_offer
from marketplace.cli.problems import Problem, problem, usage
from marketplace.cli.session import Session

COMMAND = "gpumarket.command"
ATTACH = ("auto", "forbid", "strict")
# For which refusals the next offer of our choice is asked, and what is said then of the first.
GIVES_WAY = {
    "no_capacity": "was sold out meanwhile",
    "never_fits": "has no place that large",
    "policy_excludes": "is kept out by a policy",
}

OfferName = Annotated[
    str | None,
    typer.Argument(metavar="OFFER", help="Slug or id; without it, the cheapest that fits.", show_default=False),
]
Gpus = Annotated[int, typer.Option(metavar="N", min=1, help="GPUs of each replica.")]
Replicas = Annotated[int, typer.Option(metavar="N", min=1, help="Replicas, started together or not at all.")]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="A name for the instance.", show_default=False)]
Env = Annotated[
    list[str] | None,
    typer.Option(metavar="K=V", help="Set a variable; K alone passes on yours. Repeat as needed.", show_default=False),
]
EnvFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Read variables from a file of K=V lines.", show_default=False)
]
Image = Annotated[
    str | None,
    typer.Option(
        metavar="IMAGE",
        help="OCI image with registry and tag or digest; for offers that run images.",
        show_default=False,
    ),
]
Port = Annotated[
    list[int] | None,
    typer.Option(
        metavar="N", min=1, max=65_535, help="Publish this TCP port of the image. Repeat as needed.", show_default=False
    ),
]
Lease = Annotated[
    str | None,
    typer.Option(
        metavar="strict|sticky",
        help="Without contact: strict ends soon and is soon placed anew; sticky (default) goes on for longer.",
        show_default=False,
    ),
]
RestartOnFailure = Annotated[
    bool, typer.Option("--restart-on-failure", help="Start it again elsewhere when its node or a GPU fails.")
]
ReservationName = Annotated[
    str | None,
    typer.Option(
        "--reservation",
        metavar="ID|auto|forbid|strict",
        help="Run inside this reservation; or inside one that has room (auto), never, or nowhere else (strict).",
        show_default=False,
    ),
]
ContractName = Annotated[
    str | None,
    typer.Option(
        "--contract",
        metavar="CTV",
        help="Let the share of revenue of this contract, which you agreed to, pay for its hours.",
        show_default=False,
    ),
]
Volumes = Annotated[
    list[str] | None,
    typer.Option(
        "--volume",
        metavar="NAME:PATH",
        help="Mount a volume, such as data:/data, or data:/data:ro to read only. Repeat as needed.",
        show_default=False,
    ),
]
Within = Annotated[
    str | None,
    typer.Option(
        metavar="node|rack|fabric", help="All replicas inside one of these, or not at all.", show_default=False
    ),
]
Spread = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL[:SKEW]",
        help="Deal the replicas out over each node, rack or fabric; counts differ by 1 at most, or by SKEW.",
        show_default=False,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="KEY", help="Idempotency key of an earlier try: asking again never launches twice.", show_default=False
    ),
]


@dataclass(frozen=True)
class Running:
    """How it is to run: what `--image`, `--port`, `--lease`, `--reservation` and the like say."""

    image: str | None = None
    ports: Sequence[int] | None = None
    lease: str | None = None
    restarts: bool = False
    placement: dict[str, Any] | None = None
    reservation: str | None = None
    contract: str | None = None

    def body(self) -> dict[str, Any]:
        """Return the fields of an order that were given."""
        given: dict[str, Any] = {
            "image": self.image,
            "ports": list(self.ports or []),
            "lease": self.lease,
            "placement": self.placement,
            "contract": self.contract,
        }
        given["attach" if self.reservation in ATTACH else "reservation"] = self.reservation
        body = {name: value for name, value in given.items() if value}
        return body | ({"on_failure": "restart"} if self.restarts else {})


def wish(within: str | None, spread: str | None) -> dict[str, Any] | None:
    """Return what `--within` and `--spread` ask of placement."""
    if within and spread:
        raise usage("--within and --spread contradict each other; give one of them.")
    if not spread:
        return {"level": within, "required": True} if within else None
    level, _, skew = spread.partition(":")
    if skew and not (skew.isdecimal() and int(skew)):
        raise usage("The skew of --spread is a number of replicas, such as rack:2.")
    return {"strategy": "spread", "level": level, "required": True, "max_skew": int(skew or 1)}


class TakesCommand(TyperCommand):
    """A command line that ends in `-- COMMAND...`: what stands behind the dashes is the customer's, unread."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = args[: args.index("--")] if "--" in args else args
        ctx.meta[COMMAND] = args[len(own) + 1 :]
        names_image = any(word.partition("=")[0] == "--image" for word in own)
        if not ctx.meta[COMMAND] and not names_image and "--help" not in own:
            raise usage(
                "There is no command to run.",
                detail="The command of the instance stands last, behind two dashes.",
                suggestion=f"For example: gpumarket {self.name} --gpus 1 -- python3 train.py. "
                "With --image it may be left out: then the image's own command runs.",
            )
        return super().parse_args(ctx, own)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND..."]


class Order:
    """One wish for an instance and the offers that may fulfil it, the best first.

    Each offer has its own Idempotency-Key, made before the first call: `place` may be repeated after an
    interrupt or a lost answer, and finds the instance that the first call made.
    """

    def __init__(
        self, session: Session, *, offers: Sequence[dict[str, Any]], body: dict[str, Any], key: str | None, chosen: bool
    ) -> None:
        self._session = session
        self._body = body
        self._tries = [(offer, key or str(uuid.uuid4())) for offer in offers]
        self._chosen = chosen

    @property
    def offer(self) -> dict[str, Any]:
        """The offer that is asked now."""
        return self._tries[0][0]

    def place(self) -> dict[str, Any]:
        """Launch, and return the instance."""
        return self._send()

    def _send(self, **params: Any) -> dict[str, Any]:
        """Send the order. An offer of our choice that cannot take it makes way for the next, at its own price."""
        while True:
            offer, key = self._tries[0]
            body = {"offer": offer["slug"], **self._body}
            try:
                return self._session.client.post("/instances", body, key=key, **params)
            except Problem as refusal:
                if refusal.code not in GIVES_WAY or len(self._tries) == 1:
                    raise
                self._tries.pop(0)
                why = GIVES_WAY[refusal.code]
                self._session.terminal.say(f"{offer['slug']} {why}; taking {self.offer['slug']}.")
                self._say_price()

    def wait(self, *, max_price: str | None, until: str) -> dict[str, Any]:
        """Let the first offer's queue have the order; without a price, at the offer's of today."""
        offer, key = self._tries[0]
        price = offer["price"]["amount"] if max_price is None else amount(max_price)
        body = {"offer": offer["slug"], **self._body, "max_price": price}
        return self._session.client.post("/waits", body | {"until": until}, key=key)

    def rehearse(self) -> dict[str, Any]:
        """Ask whether the order would be accepted; nothing is done."""
        return self._send(dry_run="true")

    def say(self) -> None:
        """Say what is ordered, at what price, and if the choice was ours, why this one."""
        if self._chosen:
            others = len(self._tries) - 1
            why = f"the cheapest of {others + 1} that fit" if others else "the only one that fits"
            self._session.terminal.say(f"Offer: {self.offer['slug']}, {why}.")
        self._say_price()

    def _say_price(self) -> None:
        offer, price = self.offer, self.offer["price"]
        gpus = self._body["gpus"] * self._body["replicas"]
        per_hour = words.money(Decimal(price["amount"]) * gpus, price["currency"])
        size = f"{self._body['replicas']} x {self._body['gpus']}" if self._body["replicas"] > 1 else str(gpus)
        self._session.terminal.say(
            f"{size} {offer['gpu_model']} in {offer['site']['name']} ({offer['site']['country']}) "
            f"for {per_hour} per hour; billing starts when ready."
        )


def make_order(
    session: Session,
    *,
    offer: str | None,
    gpu_model: str | None,
    country: str | None,
    gpus: int,
    replicas: int,
    name: str | None,
    env: dict[str, str],
    project: str | None,
    key: str | None,
    command: list[str],
    running: Running,
    volumes: Sequence[str] = (),
) -> Order:
    """Return the order that a command line means; refuse what can be refused before asking for it."""
    if key and not offer:
        raise usage(
            "--key needs the offer of the first try.",
            suggestion="Name the OFFER; an order is repeated exactly or not at all.",
        )
    uses = [mounted(text) for text in volumes]
    homes = {row["offer"] for row in find_volumes(session, uses, project=project)}
    if not offer and len(homes - {None}) == 1 and not (gpu_model or country):
        # A local volume can be used on its own node alone, and that node is of one offer.
        offer = str((homes - {None}).pop())
    if offer and (gpu_model or country):
        raise usage(
            "An OFFER leaves nothing to choose.",
            detail="--gpu-model and --country choose the cheapest offer; here one is named.",
            suggestion="Leave out the OFFER or those options.",
        )
    if offer:
        offers = [find_offer(session.client, offer)]
    else:
        offers = cheapest_first(
            session.client,
            gpu_model=gpu_model,
            country=country,
            gpus=gpus,
            replicas=replicas,
            runs_images=running.image is not None,
        )
    body: dict[str, Any] = {"replicas": replicas, "gpus": gpus, "command": command, **running.body()}
    if uses:
        body["volumes"] = uses
    if name:
        body["name"] = name
    if env:
        body["env"] = env
    if project:
        body["project"] = project_id(session, project)
    return Order(session, offers=offers, body=body, key=key, chosen=not offer)


def mounted(text: str) -> dict[str, Any]:
    """Return the volume and path of "data:/data", and whether ":ro" follows."""
    volume, colon, path = text.partition(":")
    path, _, access = path.partition(":")
    if not (volume and colon and path.startswith("/") and access in {"", "ro", "rw"}):
        raise usage(
            f"{text!r} does not mount a volume.",
            suggestion="Write --volume NAME:/PATH, such as data:/data, or data:/data:ro to read only.",
        )
    return {"volume": volume, "path": path} | ({"read_only": True} if access == "ro" else {})


def find_volumes(session: Session, uses: Sequence[dict[str, Any]], *, project: str | None) -> list[dict[str, Any]]:
    """Return the volumes that are named, to know where they can be used."""
    if not uses:
        return []
    wanted = project_id(session, project) if project else None
    known = list(session.client.rows("/volumes", project=wanted))
    found = []
    for use in uses:
        rows = [row for row in known if use["volume"] in {row["id"], row["name"]}]
        if not rows:
            raise problem(
                code="not_found",
                title=f"There is no volume {use['volume']!r}.",
                suggestion="See what there is: gpumarket volume ls",
            )
        found.append(rows[0])
    return found


def project_id(session: Session, name: str) -> str:
    """Return the id of the project with this name or id."""
    if name.startswith("prj_"):
        return name
    projects = session.client.get("/me")["projects"]
    found = [str(project["id"]) for project in projects if project["name"].casefold() == name.casefold()]
    if len(found) == 1:
        return found[0]
    yours = ", ".join(project["name"] for project in projects) or "none"
    if found:
        raise problem(
            code="ambiguous_name",
            title=f"{len(found)} projects have the name {name}.",
            suggestion=f"Give the id instead: {', '.join(found)}",
        )
    raise problem(
        code="not_found", title=f"There is no project with the name {name}.", suggestion=f"Your projects: {yours}"
    )


def read_env(pairs: Sequence[str], file: Path | None) -> dict[str, str]:
    """Return the variables of a file and of the command line; the command line has the last word."""
    env: dict[str, str] = {}
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise usage(f"The variables of {file} cannot be read.", detail=str(error)) from error
        pairs = [*(line.strip() for line in lines if line.strip() and not line.strip().startswith("#")), *pairs]
    for pair in pairs:
        name, has_value, value = pair.partition("=")
        if not has_value and name not in os.environ:
            raise usage(
                f"{name} has no value.", suggestion=f"Write --env {name}=VALUE, or set {name} here to pass it on."
            )
        if not name.strip():
            raise usage(f"{pair!r} does not set a variable.", suggestion="Write --env NAME=VALUE.")
        env[name] = value if has_value else os.environ[name]
    return env
