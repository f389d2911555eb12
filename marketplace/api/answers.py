"""Rows as the API shows them: public ids, money as exact decimal strings, times as RFC 3339."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from django.conf import settings

from billing import accounts, floating, promotions, usage
from billing.models import PriceVersion, Runway, UsageSpan
from marketplace import costs, owing, rentals, spot_market, volumes
from marketplace.models import (
    ApiToken,
    AuditEntry,
    Invitation,
    Membership,
    Offer,
    Organization,
    Project,
    SshKey,
)
from marketplace.money import decimal_string
from marketplace.offers import Listing
from provisioning import instances as verbs
from provisioning import interruptions, placement, progress, sessions
from provisioning import volumes as kept
from provisioning.health import outlook
from provisioning.models import (
    Assignment,
    Instance,
    InstanceEvent,
    Interruption,
    RegistryCredential,
    Site,
    Volume,
    VolumeAttachment,
)

Answer = dict[str, Any]


def amount(micros: int, currency: str) -> Answer:
    return {"amount": decimal_string(micros), "currency": currency}


def price(version: PriceVersion) -> Answer:
    return {**amount(version.micros_per_unit_hour, version.currency), "unit": f"{version.unit}_hour"}


def listed_price(version: PriceVersion) -> Answer:
    minimum = version.minimum_micros
    ends = [hours for hours, _micros in version.tiers[1:]] + [None]
    return price(version) | {
        "model": version.model,
        "tiers": [
            {"from_unit_hours": begin, "up_to_unit_hours": end, "amount": decimal_string(micros)}
            for (begin, micros), end in zip(version.tiers, ends, strict=False)
        ],
        "minimum_per_month": decimal_string(minimum) if minimum else None,
    }


def site(row: Site) -> Answer:
    return {
        "id": row.public_id,
        "name": row.name,
        "slug": row.slug,
        "kind": row.kind,
        "city": row.city,
        "country": row.country,
        "jurisdiction": row.jurisdiction,
        "latitude": str(row.latitude),
        "longitude": str(row.longitude),
        "grid_zone": row.grid_zone,
        "power_source": row.power_source,
        "pue": str(row.pue),
        "certifications": row.certifications,
        "volume_kind": row.volume_kind,
    }


def site_with_storage(row: Site, storage: PriceVersion | None) -> Answer:
    return site(row) | {"storage": listed_price(storage) if storage is not None else None}


def listing(found: Listing) -> Answer:
    row = found.offer
    return {
        "id": row.public_id,
        "slug": row.slug,
        "name": row.name,
        "gpu_model": row.gpu_model,
        "gpu_memory_gib": row.gpu_memory_gib,
        "runtime": row.runtime,
        "gpus_per_node": row.gpus_per_node,
        "min_gpus": row.min_gpus,
        "max_gpus": row.max_gpus,
        "interconnect": row.interconnect,
        "site": site(row.site),
        "supplier": {"id": row.supplier.public_id, "name": row.supplier.name},
        "price": listed_price(found.price),
        "available_gpus": found.available_gpus,
        "largest_replica": found.largest_replica,
        "by_auction": found.by_auction,
        "as_of": found.as_of,
    }


def offer_ref(row: Offer) -> Answer:
    return {
        "id": row.public_id,
        "slug": row.slug,
        "name": row.name,
        "gpu_model": row.gpu_model,
        "site": {"name": row.site.name, "country": row.site.country},
    }


def instances(rows: Sequence[Instance], *, at: datetime) -> list[Answer]:
    """Return instances with cost, steps, places and volumes: five queries for any number of them."""
    cost_of = costs.of(rows, at=at)
    steps_of = progress.of(rows, at=at)
    found = placement.places(rows)
    places = _places(rows, found)
    mounts, repairs = kept.mounts_of(rows), outlook.of(rows)
    ladder = interruptions.ladder_for(rows) if any(row.market == Instance.Market.SPOT for row in rows) else {}
    answered = [_instance(row, cost_of[row.pk], steps_of[row.pk], places[row.pk], at) for row in rows]
    for row, answer in zip(rows, answered, strict=True):
        answer["volumes"] = [mount(one) for one in mounts[row.pk]]
        answer["repair"] = repair(repairs[row.pk]) if row.pk in repairs else None
        told = ladder.get(row.pk)
        answer["interruption"] = told.public_id if told is not None and told.state != told.State.ADVISED else None
        answer["risk"] = risk(spot_market.advisory(ladder, row))
        answer["access"] = [asdict(door) for door in sessions.doors(row, found)] if row.is_charged else []
    return answered


def risk(advised: Interruption | None) -> Answer | None:
    """Return what is said of an instance that the next auction may outbid."""
    if advised is None:
        return None
    return {"level": "elevated", "interruption": advised.public_id, "advised_at": advised.advised_at}


def instance(row: Instance, *, at: datetime) -> Answer:
    return instances([row], at=at)[0]


def _places(rows: Sequence[Instance], found: Iterable[Assignment]) -> dict[int, list[Answer]]:
    places: dict[int, list[Answer]] = {row.pk: [] for row in rows}
    for assignment in found:
        places[assignment.instance_id].append(
            {"replica": assignment.replica, "node": assignment.node.name, "gpus": assignment.gpu_uuids}
        )
    return places


def _instance(
    row: Instance, cost: costs.Cost, stages: Iterable[progress.Stage], places: list[Answer], at: datetime
) -> Answer:
    return {
        "id": row.public_id,
        "name": row.name,
        "project": {"id": row.project.public_id, "name": row.project.name},
        "offer": offer_ref(row.offer),
        "market": row.market,
        "attach": row.attach,
        "reservation": row.reservation.public_id if row.reservation else None,
        "paid_by": row.paid_by or None,
        "replicas": row.replicas,
        "gpus_per_replica": row.gpus_per_replica,
        "gpus": row.gpus,
        "command": row.command,
        "env_names": sorted(row.env),
        "image": row.image or None,
        "ports": row.ports,
        "lease": row.lease,
        "lease_s": settings.ASSIGNMENT_LEASE_S[row.lease],
        "on_failure": row.on_failure,
        "placement": row.placement,
        "restarts": row.restarts,
        "restart_at": row.restart_at,
        "desired": row.desired,
        "phase": row.phase,
        "health": row.health,
        "reason": row.reason,
        "message": row.message,
        "retryable": row.retryable,
        "generation": row.generation,
        "observed_generation": row.observed_generation,
        "exit_code": row.exit_code,
        "steps": [step(stage) for stage in stages],
        "cost": {
            "billing": cost.billing,
            "currency": cost.currency,
            "per_second": decimal_string(cost.per_second_micros),
            "per_hour": decimal_string(cost.per_hour_micros),
            "per_day": decimal_string(cost.per_day_micros),
            "so_far": decimal_string(cost.so_far_micros),
            "gpu_milliseconds": cost.gpu_milliseconds,
        },
        "actions": {
            verb: {"available": not refusal, "reason": refusal or None} for verb, refusal in verbs.actions(row).items()
        },
        "nodes": places,
        "created_at": row.created_at,
        "ready_at": row.ready_at,
        "ended_at": row.ended_at,
        "as_of": at,
    }


def mount(row: VolumeAttachment) -> Answer:
    return {"id": row.volume.public_id, "name": row.volume.name, "path": row.path, "read_only": row.read_only}


def repair(found: outlook.Outlook) -> Answer:
    return {
        "part": found.part,
        "node": found.node,
        "reason": found.reason,
        "since": found.since,
        "ends_at": found.ends_at,
        "node_held": found.is_node_held,
    }


def step(stage: progress.Stage) -> Answer:
    return {
        "name": stage.name,
        "title": stage.title,
        "state": stage.state,
        "started_at": stage.started_at,
        "finished_at": stage.finished_at,
        "elapsed_ms": stage.elapsed_ms,
        "typical_ms": stage.typical_ms,
        "progress": stage.transfer and transfer(stage.transfer),
    }


def transfer(found: progress.Transfer) -> Answer:
    return {
        "step": found.step,
        "title": found.title,
        "replicas": found.replicas,
        "done_bytes": found.done_bytes,
        "total_bytes": found.total_bytes,
        "bytes_per_s": found.bytes_per_s,
        "percent": found.percent,
    }


def volume(row: Volume) -> Answer:
    """Return a volume that came through `access`, which brought along all that is asked here."""
    live = kept.live_attachment(row)
    is_local = row.kind == Site.VolumeKind.LOCAL
    return {
        "id": row.public_id,
        "name": row.name,
        "project": {"id": row.project.public_id, "name": row.project.name},
        "site": {"name": row.site.name, "country": row.site.country},
        "kind": row.kind,
        "node": row.node.name,
        "offer": row.node.offer.slug if is_local else None,
        "size_gib": row.size_gib,
        "used_bytes": row.used_bytes,
        "used_percent": row.used_percent,
        "measured_at": row.measured_at,
        "is_snapshot": row.is_snapshot,
        "source": {"id": row.source.public_id, "name": row.source.name} if row.source else None,
        "state": row.state,
        "health": row.health,
        "message": row.message,
        "attachment": {
            "instance": {"id": live.instance.public_id, "name": live.instance.name},
            "path": live.path,
            "read_only": live.read_only,
            "attached_at": live.attached_at,
        }
        if live
        else None,
        "cost": _volume_cost(row),
        "actions": {
            verb: {"available": not refusal, "reason": refusal or None} for verb, refusal in kept.actions(row).items()
        },
        "created_at": row.created_at,
        "ready_at": row.ready_at,
        "unpaid_since": row.unpaid_since,
        "deleted_when_unpaid": volumes.deleted_when_unpaid(row),
        "delete_after": row.delete_after,
        "deleted_at": row.deleted_at,
    }


def _volume_cost(row: Volume) -> Answer:
    found = volumes.rate(price=row.price_version, size_gib=row.size_gib)
    return {
        "billing": volumes.billing_of(row),
        "currency": found.currency,
        "per_gib_hour": decimal_string(found.per_gib_hour_micros),
        "per_hour": decimal_string(found.per_hour_micros),
        "per_month": decimal_string(found.per_month_micros),
    }


def quote(order: rentals.Order, found: rentals.Quote) -> Answer:
    currency = found.price.currency
    return {
        "would_rent": True,
        "offer": offer_ref(order.offer),
        "gpus": order.gpus * order.replicas,
        "price": price(found.price),
        "per_hour": amount(found.hourly_micros, currency),
        "first_hour_hold": amount(found.hourly_micros, currency),
    }


def event(row: InstanceEvent) -> Answer:
    return {
        "at": row.at,
        "kind": row.kind,
        "run": row.run,
        "old_phase": row.old_phase,
        "new_phase": row.new_phase,
        "reason": row.reason,
        "message": row.message,
    }


def span(row: UsageSpan, *, at: datetime) -> Answer:
    used = usage.unit_milliseconds(span=row, at=at)
    is_gpus = row.meter == UsageSpan.Meter.GPU
    return {
        "id": row.public_id,
        "resource": row.resource_id,
        "name": row.resource_name,
        "meter": row.meter,
        "unit": row.unit,
        "quantity": row.quantity,
        "gpus": row.quantity if is_gpus else 0,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "unit_milliseconds": used,
        "gpu_milliseconds": used if is_gpus else 0,
        "price": price(row.price_version)
        | amount(floating.price_now(row.price_version, at=row.ended_at or at), row.price_version.currency),
        "covered_by": row.covered_by or None,
        "amount": amount(usage.amount_micros(span=row, at=at), row.price_version.currency),
    }


def balance(
    organization: Organization,
    wallet: accounts.Wallet,
    runway: Runway | None,
    *,
    credit: Sequence[promotions.Left],
    unpaid: Sequence[owing.Unpaid],
    taken: Sequence[owing.TakenBack],
    coming: Sequence[owing.Coming],
    level: str,
    at: datetime,
) -> Answer:
    return {
        "organization": {"id": organization.public_id, "name": organization.name},
        "currency": wallet.currency,
        "available": decimal_string(wallet.available_micros),
        "promo": decimal_string(wallet.promo_micros),
        "cash": decimal_string(wallet.cash_micros),
        "held": decimal_string(wallet.held_micros),
        "owed": decimal_string(wallet.owed_micros),
        "credit_limit": decimal_string(wallet.credit_limit_micros),
        "credits": [
            {
                "id": one.grant.public_id,
                "reason": one.grant.reason,
                "amount": decimal_string(one.grant.amount_micros),
                "left": decimal_string(one.left_micros),
                "expires_at": one.grant.expires_at,
            }
            for one in credit
        ],
        "past_due": decimal_string(owing.past_due_micros(unpaid, taken, at=at)),
        "taken_back": decimal_string(sum(one.left_micros for one in taken)),
        "written_off": decimal_string(owing.written_off_micros(organization)),
        "coming": [{"at": one.at, "code": one.code, "text": one.text, "invoice": one.number or None} for one in coming],
        "burn_per_hour": decimal_string(runway.burn_micros_per_hour if runway else 0),
        "exhausts_at": runway.exhausts_at if runway else None,
        "level": level,
        "as_of": at,
    }


def organization(row: Organization) -> Answer:
    return {"id": row.public_id, "name": row.name, "currency": row.currency}


def project(row: Project) -> Answer:
    return {
        "id": row.public_id,
        "name": row.name,
        "organization": row.organization.public_id,
        "suspended": row.is_suspended,
    }


def member(row: Membership) -> Answer:
    return {
        "id": row.public_id,
        "email": row.user.email,
        "name": row.user.display_name,
        "role": row.role,
        "created_at": row.created_at,
    }


def invitation(row: Invitation) -> Answer:
    return {
        "id": row.public_id,
        "email": row.email,
        "role": row.role,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "accepted_at": row.accepted_at,
        "revoked_at": row.revoked_at,
    }


def token(row: ApiToken) -> Answer:
    return {
        "id": row.public_id,
        "name": row.name,
        "prefix": row.prefix,
        "owner": row.membership.user.email,
        "project": row.project.public_id if row.project else None,
        "scopes": row.scopes,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "last_used_at": row.last_used_at,
    }


def ssh_key(row: SshKey) -> Answer:
    return {
        "id": row.public_id,
        "name": row.name,
        "project": row.project.public_id,
        "fingerprint": row.fingerprint,
        "public_key": row.public_key,
        "created_at": row.created_at,
    }


def registry(row: RegistryCredential) -> Answer:
    """Return a way into a registry without what opens it."""
    return {
        "id": row.public_id,
        "project": row.project.public_id,
        "host": row.host,
        "username": row.username,
        "created_at": row.created_at,
        "handed_out_at": row.handed_out_at,
    }


def audit_entry(row: AuditEntry) -> Answer:
    return {
        "id": row.public_id,
        "at": row.at,
        "actor": row.actor_name,
        "token": row.token_id_used or None,
        "verb": row.verb,
        "subject": row.subject_id,
        "before": row.before,
        "after": row.after,
        "request_id": row.request_id,
    }
