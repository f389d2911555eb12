"""What nodes sign: whose it is, whether it fits, and that nobody else can say it."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from provisioning import reports, statements
from provisioning.agent.signing import STATEMENT, digest, key_id, new_private, public_of, signed
from provisioning.models import Assignment, CounterSample, Instance, Node, NodeKey, NodeStatement
from provisioning.protocol import Inventory
from provisioning.statements import AlreadyRevoked
from tests.conftest import Fleet

PRIVATE, OTHER = new_private(), new_private()


@pytest.fixture
def row(running: Instance) -> Assignment:
    found = Assignment.objects.select_related("node", "instance").get(instance=running)
    statements.learn_key(node=found.node, public=public_of(PRIVATE), at=timezone.now())
    return found


def document(row: Assignment, *, private: str = PRIVATE, **changes: Any) -> dict[str, Any]:
    body = {
        "kind": STATEMENT, "node": row.node.public_id, "assignment": row.public_id, "fence": row.fence,
        "instance": row.instance.public_id, "replica": row.replica, "gpus": row.gpu_uuids,
        "image": row.instance.image, "image_digest": None, "command_sha256": digest(row.instance.command),
        "inputs": None, "outputs": None, "state": "exited", "exit_code": 0, "message": "", "running_at": None,
        "ended_at": None,
    }  # fmt: skip
    return signed(body | changes, private=private, at=timezone.now())


def taken(row: Assignment, said: dict[str, Any], *, node: Node | None = None) -> NodeStatement | None:
    statements.take(node or row.node, timezone.now(), said)
    return NodeStatement.objects.filter(assignment=row).first()


def test_a_node_tells_its_key_with_its_inventory_and_its_statement_in_its_journal(
    running: Instance, row: Assignment, fleet: Fleet
) -> None:
    played = fleet.nodes[row.node.name]
    played.tell("statement", **document(row))
    fleet.sync()
    stated = NodeStatement.objects.get(assignment=row)
    assert (stated.trouble, stated.key and stated.key.public_id) == ("", key_id(public_of(PRIVATE)))
    said = Inventory(generation=7, gpus=[], signing_key=public_of(OTHER))
    reports._take_inventory(row.node, said, timezone.now())
    assert {key.public_key for key in NodeKey.objects.filter(node=row.node)} == {public_of(PRIVATE), public_of(OTHER)}


def test_the_same_words_again_change_nothing_and_other_words_take_their_worth(row: Assignment) -> None:
    first = document(row)
    before = taken(row, first)
    assert before is not None
    assert before.trouble == ""
    again = taken(row, first)
    assert again is not None
    assert (again.pk, again.taken_at, again.trouble) == (before.pk, before.taken_at, "")
    contradicted = taken(row, document(row, message="otherwise"))
    assert contradicted is not None
    assert contradicted.document == first
    assert "two different" in contradicted.trouble


@pytest.mark.parametrize(
    ("name", "value"),
    [("gpus", ["GPU-x"]), ("fence", 9), ("image", "other"), ("instance", "ins_other"), ("replica", 1),
     ("command_sha256", "0" * 64), ("node", "nod_other"), ("inputs", "b" * 64)],
)  # fmt: skip
def test_what_contradicts_what_is_known_is_kept_and_does_not_count(row: Assignment, name: str, value: Any) -> None:
    stated = taken(row, document(row, **{name: value}))
    assert stated is not None
    assert stated.trouble == f"it differs from what is known of: {name}"


def test_another_exit_code_than_was_reported_does_not_count(row: Assignment) -> None:
    Assignment.objects.filter(pk=row.pk).update(exit_code=3)
    stated = taken(row, document(row, exit_code=0))
    assert stated is not None
    assert "exit_code" in stated.trouble


def test_other_outputs_than_the_store_has_do_not_count(row: Assignment) -> None:
    Instance.objects.filter(pk=row.instance_id).update(outputs_sha256="a" * 64)
    stated = taken(row, document(row, outputs="b" * 64))
    assert stated is not None
    assert "outputs" in stated.trouble


@pytest.mark.parametrize("forge", ["stranger", "changed", "unsigned", "twice", "other kind", "revoked"])
def test_what_no_good_key_of_the_node_signed_does_not_count(row: Assignment, forge: str) -> None:
    said = document(row)
    if forge == "stranger":
        said = document(row, private=OTHER)
    elif forge == "changed":
        said["body"]["message"] = "changed"
    elif forge == "unsigned":
        said["signatures"] = []
    elif forge == "twice":
        said["signatures"] *= 2
    elif forge == "other kind":
        said["signatures"] = signed(said["body"] | {"kind": "x"}, private=PRIVATE, at=timezone.now())["signatures"]
    else:
        statements.revoke_key(key=NodeKey.objects.get(), because="it leaked", at=timezone.now())
    stated = taken(row, said)
    assert stated is not None
    assert stated.key is None
    assert stated.trouble == "no good key of the node signed it"


def test_a_node_says_nothing_of_the_assignments_of_another(row: Assignment, fleet: Fleet) -> None:
    other = Node.objects.exclude(pk=row.node_id).first()
    assert other is not None
    statements.learn_key(node=other, public=public_of(OTHER), at=timezone.now())
    assert taken(row, document(row, private=OTHER), node=other) is None
    assert taken(row, document(row, assignment="asg_unknown")) is None
    # A key that one node has never becomes another's.
    statements.learn_key(node=other, public=public_of(PRIVATE), at=timezone.now())
    assert NodeKey.objects.get(public_key=public_of(PRIVATE)).node == row.node


@pytest.mark.parametrize(
    "said",
    [{}, {"body": []}, {"body": {"assignment": {}}}, {"body": {"assignment": 1}, "signatures": 1.5}],
)
def test_what_is_no_statement_is_left_out(row: Assignment, said: dict[str, Any]) -> None:
    assert taken(row, said) is None


@pytest.mark.parametrize("more", [{"message": 1.5}, {"message": "x" * 100_000}, {"message": "nul \0"}])
def test_what_a_database_would_not_keep_as_it_is_is_left_out(row: Assignment, more: dict[str, Any]) -> None:
    assert taken(row, document(row, **more)) is None


def test_a_member_too_many_does_not_count_and_a_key_is_revoked_once(row: Assignment) -> None:
    stated = taken(row, document(row, more="words"))
    assert stated is not None
    assert "form" in stated.trouble
    key = NodeKey.objects.get()
    statements.revoke_key(key=key, because="it leaked", at=timezone.now())
    assert [one.public_id for one in statements.revoked_keys()] == [key.public_id]
    with pytest.raises(AlreadyRevoked):
        statements.revoke_key(key=key, because="again", at=timezone.now())


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        (None, True),
        ({}, True),
        ({"tokens_total": [3, 90]}, True),
        ({"tokens_total": [0, 90]}, False),
        ({"tokens_total": [3, 900]}, False),
        ({"frames_total": [3, 90]}, False),
        ({"tokens_total": [3]}, False),
        ({"tokens_total": [True, 90]}, False),
        ([3, 90], False),
    ],
)
def test_signed_readings_are_those_that_the_node_told_before(row: Assignment, said: Any, counts: bool) -> None:
    at = timezone.now()
    for value in (1, 3, 50, 90):
        at += timedelta(seconds=1)
        CounterSample.objects.create(
            instance=row.instance, assignment=row, name="tokens_total", since=at, at=at, value=value, increase=0
        )
    stated = taken(row, document(row, counters=said))
    assert stated is not None
    assert stated.trouble == ("" if counts else "it differs from what is known of: counters")
