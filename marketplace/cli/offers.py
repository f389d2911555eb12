"""What is for sale, and which offer to take when the customer leaves the choice to us."""

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.problems import Problem, problem, usage
from marketplace.cli.session import AsJson, Explain, open_session

if TYPE_CHECKING:
    from marketplace.cli.client import Client

RUNS_IMAGES = "podman"
RUNS = {"process": "commands", RUNS_IMAGES: "images", "slurm": "commands (Slurm)"}

GpuModel = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Only this GPU, for example H200.", show_default=False)
]
Country = Annotated[
    str | None, typer.Option(metavar="CODE", help="Only in this country, for example NO.", show_default=False)
]


def offers(
    *,
    gpu_model: GpuModel = None,
    country: Country = None,
    min_gpus: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At least so many free GPUs.", show_default=False)
    ] = None,
    available: Annotated[bool, typer.Option("--available", help="Only where GPUs are free now.")] = False,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """List what is for sale: GPUs, sites, prices and what is free now."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = list_offers(
            session.client, gpu_model=gpu_model, country=country, min_gpus=min_gpus, available=available
        )
        if as_json:
            session.terminal.document({"data": found, "next_cursor": None})
        elif found:
            session.terminal.table(
                ["OFFER", "GPU", "MEMORY", "RUNS", "SITE", "COUNTRY", ">PER GPU-HOUR", "AUCTION", ">FREE", ">LARGEST"],
                [offer_cells(offer) for offer in sorted(found, key=by_price)],
            )
            for offer in sorted(found, key=by_price):
                if said := tiers_of(offer["price"]):
                    session.terminal.say(f"{offer['slug']}: {said}")
            if any(offer.get("by_auction") for offer in found):
                session.terminal.say("AUCTION: sold to the highest bids too. See: gpumarket spot-price OFFER")
            session.terminal.say(
                "LARGEST: the most free GPUs on one node. Next: gpumarket launch OFFER --gpus 1 -- COMMAND"
            )
        else:
            session.terminal.say("No offer is like that. See them all: gpumarket offers")


def offer_cells(offer: dict[str, Any]) -> list[str]:
    site, price = offer["site"], offer["price"]
    return [
        offer["slug"],
        offer["gpu_model"],
        f"{offer['gpu_memory_gib']} GiB",
        RUNS.get(offer["runtime"], offer["runtime"]),
        site["name"],
        site["country"],
        words.money(price["amount"], price["currency"]),
        "yes" if offer.get("by_auction") else "no",
        str(offer["available_gpus"]),
        str(offer["largest_replica"]),
    ]


def tiers_of(price: dict[str, Any]) -> str:
    """Return what a price says beyond its first rate: its tiers, and the least that a month costs; else nothing."""
    currency, said = price["currency"], ""
    if price.get("tiers"):
        parts = [
            f"{tier['from_unit_hours']:,}-{format(tier['up_to_unit_hours'], ',') if tier['up_to_unit_hours'] else ''} h"
            f" {words.money(tier['amount'], currency)}"
            for tier in price["tiers"]
        ]
        how = "all hours at the tier that the month reaches" if price["model"] == "volume" else "each hour at its tier"
        said = f"{', '.join(parts)} per month; {how}"
    if price.get("minimum_per_month"):
        least = f"at least {words.money(price['minimum_per_month'], currency)} in a month of use"
        said = f"{said}; {least}" if said else least
    return said


def list_offers(
    client: "Client", *, gpu_model: str | None, country: str | None, min_gpus: int | None, available: bool
) -> list[dict[str, Any]]:
    return list(
        client.rows(
            "/offers",
            gpu_model=gpu_model,
            country=country.upper() if country else None,
            min_gpus=min_gpus,
            available="true" if available else None,
        )
    )


def find_offer(client: "Client", name: str) -> dict[str, Any]:
    """Return the offer with this slug or id."""
    unknown = problem(
        code="not_found", title=f"There is no offer {name!r}.", suggestion="See what there is: gpumarket offers"
    )
    if not re.fullmatch("[A-Za-z0-9_-]+", name):
        raise unknown
    try:
        return client.get(f"/offers/{name}")
    except Problem as refusal:
        raise unknown if refusal.code == "not_found" else refusal from refusal


def cheapest_first(
    client: "Client",
    *,
    gpu_model: str | None,
    country: str | None,
    gpus: int,
    replicas: int,
    runs_images: bool = False,
) -> list[dict[str, Any]]:
    """Return the offers that can take the order now, cheapest first; refuse if there is none."""
    listed = list_offers(client, gpu_model=gpu_model, country=country, min_gpus=None, available=False)
    found = [offer for offer in listed if (offer.get("runtime") == RUNS_IMAGES) == runs_images]
    if not found:
        raise usage(
            none_like(gpu_model, country, runs_images=runs_images, is_kind_missing=bool(listed)),
            suggestion="See what there is, and what each runs: gpumarket offers",
        )
    fitting = [offer for offer in found if can_take(offer, gpus=gpus, replicas=replicas)]
    if not fitting:
        best = max(found, key=lambda offer: (offer["largest_replica"], offer["available_gpus"]))
        raise problem(
            code="no_capacity",
            title=f"No offer has {describe_size(gpus, replicas)} free now.",
            detail=f"Looked at {describe_wish(gpu_model, country)}. The most is at {best['slug']}: "
            f"{describe_size(best['available_gpus'], 1)} free, {best['largest_replica']} of them on one node.",
            suggestion="Ask for fewer GPUs (--gpus, --replicas), another --gpu-model or --country, or try again later.",
        )
    return sorted(fitting, key=by_price)


def by_price(offer: dict[str, Any]) -> tuple[Decimal, str]:
    return Decimal(offer["price"]["amount"]), offer["slug"]


def can_take(offer: dict[str, Any], *, gpus: int, replicas: int) -> bool:
    wanted = gpus * replicas
    return bool(
        offer["min_gpus"] <= wanted <= offer["max_gpus"]
        and offer["largest_replica"] >= gpus
        and offer["available_gpus"] >= wanted
    )


def describe_size(gpus: int, replicas: int) -> str:
    return f"{replicas} x {words.count(gpus, 'GPU')}" if replicas > 1 else words.count(gpus, "GPU")


def none_like(gpu_model: str | None, country: str | None, *, runs_images: bool, is_kind_missing: bool) -> str:
    """Say that nothing for sale is so; `is_kind_missing` where only what it runs is wrong."""
    wish = (f" of {gpu_model}" if gpu_model else "") + (f" in {country.upper()}" if country else "")
    if not is_kind_missing:
        return f"There is no offer{wish}." if wish else "Nothing is for sale now."
    return f"No offer{wish} runs images." if runs_images else f"Every offer{wish} runs images and needs --image."


def describe_wish(gpu_model: str | None, country: str | None) -> str:
    return (gpu_model or "any GPU") + (f" in {country.upper()}" if country else " in any country")
