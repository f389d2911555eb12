"""Numbers and moments in words that people read; money is decimal strings and never floats."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

MS_PER_HOUR = 3_600_000
REASONS = {
    "exited": "its command ended",
    "user": "asked by a user",
    "operator": "asked by the operator",
    "no_funds": "the organization could not pay any more",
    "budget": "a budget is used up",
    "idle": "it was idle",
    "no_capacity": "no GPUs became free in time",
    "node_failed": "the node could not prepare it",
    "node_lost": "the node was lost",
    "gpu_fault": "a GPU failed",
    "timed_out": "a step took too long",
    "reservation_end": "the reservation that it ran in ended",
    "internal": "an error of ours",
    "outbid": "outbid",
    "capacity": "its GPUs are needed",
    "maintenance": "maintenance",
    "owner_recall": "the holder of the reservation wants the GPUs back",
    "simulated": "simulated",
}
WHOLE_CURRENCIES = {"JPY", "KRW", "ISK"}


def money(amount: str | Decimal, currency: str) -> str:
    """Return "1,234.50 USD", or all six places where the amount has more than the currency's usual ones."""
    exact = Decimal(amount)
    usual = 0 if currency in WHOLE_CURRENCIES else 2
    places = usual if exact == round(exact, usual) else 6
    return f"{exact:,.{places}f} {currency}"


def of_micros(micros: int, currency: str) -> str:
    """Return whole micros as `money` writes an amount."""
    return money(Decimal(micros).scaleb(-6), currency)


def count(number: int, thing: str) -> str:
    """Return how many of a thing, such as `1 GPU` or `1,200 nodes`."""
    return f"{number} {thing}" if number == 1 else f"{number:,} {thing}s"


def spoken(code: str) -> str:
    """Return a code of the API as words, such as "auto accepted"."""
    return code.replace("_", " ")


def price(value: Mapping[str, Any]) -> str:
    """Return "2.49 USD per GPU-hour" or "0.0001 USD per GiB-hour"."""
    unit = value["unit"].replace("gpu", "GPU").replace("gib", "GiB").replace("_", "-")
    return f"{money(value['amount'], value['currency'])} per {unit}"


def duration(ms: float) -> str:
    """Return "13 ms", "0.4 s", "12 s", "3 min 20 s", "5 h 2 min" or "3 d 4 h"."""
    if 0 < ms < 100:
        return f"{ms:.0f} ms"
    seconds = max(0.0, ms / 1000)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for big, small, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {big}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def lease(instance: Mapping[str, Any]) -> str:
    """Return "strict: without contact it ends after 2 min, and may be placed anew soon"."""
    whole, rest = divmod(instance["lease_s"], 60)
    time = f"{instance['lease_s']} s" if rest else f"{whole} min"
    if instance["lease"] == "strict":
        return f"strict: without contact it ends after {time}, and may be placed anew soon"
    return f"{instance['lease']}: without contact it goes on for {time}"


def size(count: int) -> str:
    """Return "512 B", "3.4 MB" or "12 GB": powers of a thousand, as networks count."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def transfer(progress: Mapping[str, Any]) -> str:
    """Return how far something is that a node brings in: "Pull the image: 1.2 GB of 3.4 GB, 35 %, 80.0 MB/s"."""
    done = size(progress["done_bytes"])
    parts = [done if progress["total_bytes"] is None else f"{done} of {size(progress['total_bytes'])}"]
    if progress["percent"] is not None:
        parts.append(f"{progress['percent']} %")
    if progress["bytes_per_s"]:
        parts.append(f"{size(progress['bytes_per_s'])}/s")
    return f"{progress['title']}: {', '.join(parts)}"


def parse_time(value: str) -> datetime:
    """Return the moment of an RFC 3339 text; without a zone it is UTC."""
    moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def ms_between(start: str, end: str | None) -> float:
    """Return the milliseconds from `start` to `end`, or to now."""
    until = parse_time(end) if end else datetime.now(UTC)
    return (until - parse_time(start)) / timedelta(milliseconds=1)


def local_time(value: str | None, *, seconds: bool = False) -> str:
    """Return a moment in the zone of this machine, yyyy-mm-dd hh:mm, or with its seconds."""
    return parse_time(value).astimezone().strftime(f"%Y-%m-%d %H:%M{':%S' if seconds else ''}") if value else ""


def gpus(instance: Mapping[str, Any]) -> str:
    """Return "2 H200", or "3 x 2 H200" for three replicas."""
    model = instance["offer"]["gpu_model"]
    if instance["replicas"] > 1:
        return f"{instance['replicas']} x {instance['gpus_per_replica']} {model}"
    return f"{instance['gpus']} {model}"


def phase(instance: Mapping[str, Any]) -> str:
    """Return the phase with what matters most about it: how it ended, or that nobody sees it."""
    word = str(instance["phase"])
    if word == "stopped" and instance.get("exit_code") is not None:
        return f"stopped (exited {instance['exit_code']})"
    if word == "failed" and instance.get("reason"):
        return f"failed ({instance['reason']})"
    if word == "running" and instance.get("health") in {"degraded", "unreachable"}:
        return f"running ({instance['health']})"
    return word


def why(instance: Mapping[str, Any]) -> str:
    """Return in words why an instance is where it is, with what its node or a person said; empty if nobody knows."""
    reason = REASONS.get(instance.get("reason") or "", instance.get("reason") or "")
    return ": ".join(part for part in (reason, instance.get("message") or "") if part)


def mounts(instance: Mapping[str, Any]) -> list[str]:
    """Return each volume of an instance as "data at /data"."""
    return [
        f"{one['name']} at {one['path']}{' (read-only)' if one['read_only'] else ''}"
        for one in instance.get("volumes") or []
    ]


def what_is_lost(instance: Mapping[str, Any]) -> str:
    """Return which files a stop deletes and which it keeps."""
    folder = "/workspace" if instance.get("image") else "its working folder"
    kept = mounts(instance)
    if not kept:
        return f"It has no volume: all its files are deleted, also those in {folder}."
    return f"Kept: its volumes, {', '.join(kept)}. All other files are deleted, also those in {folder}."


def repair(found: Mapping[str, Any]) -> str:
    """Return what is wrong under an instance that runs on, and until when it may."""
    whose = "a GPU of its" if found["part"] == "gpu" else f"its node {found['node']}"
    until = "it may go on, and the repair waits for it"
    if found["ends_at"]:
        until = f"it may go on until {local_time(found['ends_at'])}, then it is ended and not charged any more"
    held = "; nothing new is placed on the node" if found["node_held"] else ""
    return f"{found['reason']} ({whose}, since {local_time(found['since'])}): {until}{held}"


def cost_so_far(instance: Mapping[str, Any]) -> str:
    return money(instance["cost"]["so_far"], instance["cost"]["currency"])


def measured(row: Mapping[str, Any]) -> str:
    """Return "3,000 GPU" or "3,000 GiB": what a line of usage measured, in milliseconds of its unit."""
    if row.get("meter") == "volume":
        return f"{row['unit_milliseconds']:,} GiB"
    return f"{row['gpu_milliseconds']:,} GPU"


def usage_sum(row: Mapping[str, Any]) -> str:
    """Return one line of a bill: GPU-milliseconds (or GiB-milliseconds) x price = amount."""
    amount = money(row["amount"]["amount"], row["amount"]["currency"])
    return f"{measured(row)}-milliseconds x {price(row['price'])} = {amount}"


def total(rows: list[dict[str, Any]]) -> dict[str, Decimal]:
    """Return what rows of usage cost together, by currency."""
    sums: dict[str, Decimal] = {}
    for row in rows:
        currency = row["amount"]["currency"]
        sums[currency] = sums.get(currency, Decimal(0)) + Decimal(row["amount"]["amount"])
    return sums


def runway(balance: Mapping[str, Any]) -> str:
    """Return in a sentence how long the credit lasts."""
    burn = Decimal(balance["burn_per_hour"])
    if burn <= 0:
        return "Nothing is running that costs money."
    rate = money(burn, balance["currency"])
    if not balance.get("exhausts_at"):
        return f"Spending {rate} per hour."
    left = -ms_between(balance["exhausts_at"], None)
    if left <= 0:
        return f"Spending {rate} per hour, and the credit is used up."
    return f"Spending {rate} per hour: the credit lasts {duration(left)}, until {local_time(balance['exhausts_at'])}."
