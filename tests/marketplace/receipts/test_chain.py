"""Chains in the database: one link after another, however many append at once, and never changed."""

import hashlib
import threading
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.db.utils import DatabaseError
from django.utils import timezone

from marketplace.errors import Conflict
from marketplace.management.commands import reseal
from marketplace.models import Organization, Receipt, ReceiptSignature, SigningKey
from marketplace.receipts import chain, keys
from provisioning import resealing
from tests.marketplace.receipts.conftest import append, verified


def receipts(organization: Organization) -> list[Receipt]:
    return list(Receipt.objects.filter(organization=organization).order_by("sequence"))


def test_what_is_appended_in_sets_is_one_chain_that_anybody_verifies(acme: Organization) -> None:
    append(acme, "clm_1", "clm_2", "clm_3")
    append(acme, "clm_3", "clm_4")
    rows = receipts(acme)
    assert [(row.sequence, row.subject_id) for row in rows] == [(n, f"clm_{n}") for n in (1, 2, 3, 4)]
    head = chain.head(acme, at=timezone.now())
    assert verified(rows, head=head) == []
    assert verified(rows[:3], head=head) != []
    assert verified([rows[0], *rows[2:]], head=head) != []
    assert append(acme, "clm_1") == []


def test_each_organization_has_a_chain_of_its_own(acme: Organization, charlie: Any) -> None:
    other = Organization.objects.exclude(pk=acme.pk).get(name="Other")
    append(acme, "clm_1")
    append(other, "clm_2")
    assert [row.sequence for row in receipts(acme) + receipts(other)] == [1, 1]
    assert verified(receipts(acme) + receipts(other)) == []


@pytest.mark.django_db(transaction=True)
def test_those_who_append_at_once_make_one_chain_without_a_gap(acme: Organization) -> None:
    start, failed = threading.Barrier(6), []

    def add(number: int) -> None:
        try:
            start.wait()
            append(acme, f"clm_{number}a", f"clm_{number}b", "clm_shared")
        except DatabaseError as error:
            failed.append(error)
        finally:
            connection.close()

    adding = [threading.Thread(target=add, args=(number,)) for number in range(6)]
    for one in adding:
        one.start()
    for one in adding:
        one.join()
    assert failed == []
    rows = receipts(acme)
    assert [row.sequence for row in rows] == list(range(1, 14))
    assert verified(rows, head=chain.head(acme, at=timezone.now())) == []
    assert SigningKey.objects.count() == 1


def refused(change: Any) -> bool:
    try:
        with transaction.atomic():
            change()
    except (DatabaseError, IntegrityError):
        return True
    return False


def test_the_database_refuses_what_is_changed_deleted_or_does_not_follow(acme: Organization) -> None:
    first, second = append(acme, "clm_1", "clm_2")

    def like(**changes: Any) -> Any:
        facts = {"sequence": 3, "previous": second.digest, "text": "{}", "subject_id": "clm_3", "event": "settled"}
        facts |= {"organization": acme, "amount_micros": 0, "currency": "USD", "issued_at": timezone.now()} | changes
        facts.setdefault("digest", hashlib.sha256(facts["text"].encode()).hexdigest())
        return lambda: Receipt.objects.create(**facts)

    assert refused(lambda: Receipt.objects.filter(pk=first.pk).update(amount_micros=0))
    assert refused(lambda: ReceiptSignature.objects.filter(receipt=second).delete())
    assert refused(like(previous=first.digest))
    assert refused(like(sequence=4))
    assert refused(like(digest="0" * 64))
    assert refused(like(sequence=1, previous=""))
    assert refused(like(subject_id="clm_1"))
    assert not refused(like())


def test_a_key_is_destroyed_when_another_takes_its_place_and_its_signatures_stay_good(acme: Organization) -> None:
    append(acme, "clm_1")
    (old,) = keys.every()
    new = keys.rotate(at=timezone.now() - timedelta(days=1))  # A clock that goes wrong cuts off no signature.
    old.refresh_from_db()
    assert (old.state, old.private_sealed, new.state) == ("retired", "", "active")
    append(acme, "clm_2")
    assert verified(receipts(acme)) == []
    assert [row.key.public_id for row in ReceiptSignature.objects.order_by("pk")] == [old.public_id, new.public_id]


def test_what_a_revoked_key_signed_is_refused_until_it_is_signed_anew(acme: Organization, capsys: Any) -> None:
    append(acme, "clm_1", "clm_2")
    (old,) = keys.every()
    before = [row.digest for row in receipts(acme)]
    keys.revoke(key=old, because="it leaked", at=timezone.now())
    append(acme, "clm_3")
    assert sum("it leaked" in fault for fault in verified(receipts(acme))) == 2
    assert chain.sign_again(at=timezone.now(), limit=1) == 1
    assert chain.sign_again(at=timezone.now(), limit=10) == 1
    assert chain.sign_again(at=timezone.now(), limit=10) == 0
    assert verified(receipts(acme), head=chain.head(acme, at=timezone.now())) == []
    assert [row.digest for row in receipts(acme)][:2] == before
    with pytest.raises(Conflict, match="already"):
        keys.revoke(key=SigningKey.objects.get(pk=old.pk), because="again", at=timezone.now())


def test_the_command_shows_rotates_and_revokes(acme: Organization, capsys: Any) -> None:
    append(acme, "clm_1")
    (first,) = keys.every()
    call_command("signing_keys", "rotate")
    call_command("signing_keys", "revoke", first.public_id, because="somebody left")
    call_command("signing_keys", "list")
    said = capsys.readouterr().out
    assert "signs from now on" in said
    assert "1 receipts are signed anew" in said
    assert f"{first.public_id} revoked" in said
    assert "somebody left" in said
    assert verified(receipts(acme)) == []
    for name, because in (("key_nobody", "why"), (first.public_id, "again"), (keys.every()[1].public_id, " ")):
        with pytest.raises(CommandError):
            call_command("signing_keys", "revoke", name, because=because)


def test_a_new_secret_key_seals_the_private_key_anew(acme: Organization, settings: Any) -> None:
    append(acme, "clm_1")
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another secret key of fifty characters or even more"
    assert resealing.reseal(reseal.SEALED) == (1, [])
    settings.SECRET_KEY_FALLBACKS = []
    append(acme, "clm_2")
    assert verified(receipts(acme)) == []
