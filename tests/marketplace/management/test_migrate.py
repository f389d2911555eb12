"""Migrating quickly: what is shown to migrations is what Django would have shown them."""

import copy

import pytest
from django.contrib.postgres.fields import ArrayField
from django.db import migrations, models
from django.db.migrations.state import ModelState, ProjectState

from marketplace.management.commands.migrate import quick_states

POSITIVE = models.CheckConstraint(condition=models.Q(size__gt=0), name="a thing has a size")
SMALL = models.CheckConstraint(condition=models.Q(size__lt=9), name="a thing is small")
BY_SIZE = models.Index(fields=["size"], name="by_size")


def state_of_things() -> ProjectState:
    thing = ModelState(
        "things",
        "Thing",
        [
            ("id", models.BigAutoField(primary_key=True)),
            ("size", models.IntegerField(choices=[(1, "one"), (2, "two")], default=1)),
            ("names", ArrayField(models.CharField(max_length=9), default=list)),
        ],
        options={"constraints": [POSITIVE], "indexes": []},
    )
    part = ModelState(
        "things",
        "Part",
        [
            ("id", models.BigAutoField(primary_key=True)),
            ("thing", models.ForeignKey("things.Thing", models.PROTECT, related_name="parts")),
        ],
    )
    return ProjectState({("things", "thing"): thing, ("things", "part"): part})


def seen(state: ProjectState) -> dict[str, list[str]]:
    meta = state.apps.get_model("things", "thing")._meta
    return {"constraints": [one.name for one in meta.constraints], "indexes": [one.name for one in meta.indexes]}


@pytest.mark.parametrize(
    "operation",
    [
        migrations.AddConstraint("thing", SMALL),
        migrations.RemoveConstraint("thing", POSITIVE.name),
        migrations.AddIndex("thing", BY_SIZE),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_a_migration_sees_the_constraints_and_indexes_that_django_would_show_it(operation) -> None:
    slow, quick = state_of_things(), state_of_things()
    assert seen(slow) == seen(quick)
    operation.state_forwards("things", slow)
    before = quick.apps.get_model("things", "part")
    with quick_states():
        operation.state_forwards("things", quick)
        assert quick.apps.get_model("things", "part") is before, "what is related is not made anew"
    assert seen(quick) == seen(slow) != seen(state_of_things())


def test_fields_that_come_later_are_seen_with_what_was_added_before() -> None:
    state = state_of_things()
    assert seen(state)["constraints"] == [POSITIVE.name]
    with quick_states():
        migrations.AddConstraint("thing", SMALL).state_forwards("things", state)
        migrations.AddField("thing", "weight", models.IntegerField(default=3)).state_forwards("things", state)
    thing, part = (state.apps.get_model("things", name) for name in ("thing", "part"))
    assert seen(state)["constraints"] == [POSITIVE.name, SMALL.name]
    assert thing(size=2).weight == 3
    assert part._meta.get_field("thing").related_model is thing


def test_each_model_has_fields_of_its_own_made_as_django_makes_them() -> None:
    fields = state_of_things().models["things", "thing"].fields
    for field in fields.values():
        plain = field.clone()
        with quick_states():
            one, other = field.clone(), field.clone()
        assert one.deconstruct() == other.deconstruct() == plain.deconstruct() or isinstance(field, ArrayField)
        assert one is not other
    with quick_states():
        one, other = fields["names"].clone(), fields["names"].clone()
    assert one.base_field is not other.base_field


def test_a_field_that_was_copied_and_changed_is_asked_again() -> None:
    field = models.IntegerField(default=1)
    with quick_states():
        field.clone()
        changed = copy.copy(field)
        changed.default = 2
        assert changed.clone().default == 2
