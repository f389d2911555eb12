"""Ids that people see."""

from django.db import models
from django.db.migrations.writer import MigrationWriter

from billing.public_ids import ALPHABET, PublicIdField, new_public_id


def test_an_id_is_a_prefix_and_twenty_characters_that_nobody_can_guess():
    prefix, _, rest = new_public_id("ins").partition("_")
    assert prefix == "ins"
    assert len(rest) == 20
    assert set(rest) <= set(ALPHABET)


def test_no_two_ids_are_the_same():
    assert len({new_public_id("ins") for _ in range(1000)}) == 1000


def test_the_field_makes_an_id_and_keeps_its_prefix_in_migrations():
    field = PublicIdField(prefix="spn")
    assert field.get_default().startswith("spn_")
    assert (field.unique, field.editable, field.max_length) == (True, False, 32)
    assert MigrationWriter.serialize(field)[0] == "billing.public_ids.PublicIdField(prefix='spn')"
    assert isinstance(field.clone(), models.CharField)
    assert field.clone().prefix == "spn"
