"""Where a bid stands: in the list of bids, and beside the instance that bids."""

from typing import Any

from marketplace.cli import words
from marketplace.cli.session import Session


def state(row: dict[str, Any]) -> str:
    """Return where a bid stands, with when its GPUs are taken if they are."""
    told = row["interruption"]
    if told and told["deadline_at"]:
        left = -words.ms_between(told["deadline_at"], None)
        return f"{row['state']} ({told['reason']}: ends in {words.duration(left)})"
    if row.get("risk"):
        return f"{row['state']} (may be outbid by the next auction)"
    return str(row["state"])


def describe(session: Session, instance: dict[str, Any]) -> list[str]:
    """Return what an instance bids, where that stands, and what the auctions give now; nothing for what was rented."""
    if instance.get("market") != "spot":
        return []
    bids = session.client.get("/bids", instance=instance["id"])["data"]
    if not bids:
        return []
    bid = bids[0]
    lines = [f"  bid       {bid['id']}, {words.price(bid['max_price'])} at most: {state(bid)}"]
    if bid["reason"]:
        lines.append(f"  reason    {bid['reason']}")
    if bid["state"] == "ended":
        return lines
    now = session.client.get(f"/offers/{bid['offer']['slug']}/spot")
    upcoming = words.local_time(now["next_auction_at"]) if now["next_auction_at"] else "none"
    return [*lines, f"  auction   {words.price(now['price'])} now, every {now['interval_s']} s, the next at {upcoming}"]
