"""Migrating quickly: what is shown to migrations is what Django would have shown them."""

import copy

import pytest
from django.contrib.postgres.fields import ArrayField
from django.db import connection, migrations, models
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
    box = ModelState(
        "things",
        "Box",
        [("id", models.BigAutoField(primary_key=True)), ("holds", models.ManyToManyField("things.Thing"))],
    )
    return ProjectState({("things", model.name_lower): model for model in (thing, part, box)})


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


FOREIGN = models.ForeignKey("things.Part", models.PROTECT, null=True, related_name="owners")
HEAVY = migrations.AddField("thing", "weight", models.IntegerField(default=3))


@pytest.mark.parametrize(
    "operation",
    [
        HEAVY,
        migrations.AddField("thing", "part", FOREIGN),
        migrations.RemoveField("thing", "size"),
        migrations.AlterField("thing", "size", models.BigIntegerField()),
        migrations.CreateModel("Owner", [("id", models.BigAutoField(primary_key=True)), ("part", FOREIGN)]),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_what_is_related_to_a_changed_model_is_not_made_anew(operation) -> None:
    slow, quick = state_of_things(), state_of_things()
    before = [state.apps.get_model("things", "part") for state in (slow, quick)]
    operation.state_forwards("things", slow)
    with quick_states():
        operation.state_forwards("things", quick)
    after = [state.apps.get_model("things", "part") for state in (slow, quick)]
    assert [one is other for one, other in zip(before, after, strict=True)] == [False, True]
    changed = [state.apps.get_model("things", operation.name if "Create" in repr(operation) else "thing")
               for state in (slow, quick)]  # fmt: skip
    fields = [[(field.name, field.db_type(connection)) for field in model._meta.local_fields] for model in changed]
    assert fields[0] == fields[1]


def test_what_inherits_from_a_changed_model_is_made_anew() -> None:
    state = state_of_things()
    state.add_model(ModelState("things", "Copy", [], options={"proxy": True}, bases=("things.thing",)))
    before = state.apps.get_model("things", "copy")
    assert before._meta.get_field("size")
    with quick_states():
        HEAVY.state_forwards("things", state)
        assert state.apps.get_model("things", "copy")().weight == 3


def test_a_data_migration_sees_every_model_with_what_was_added_before() -> None:
    seen = []

    def look(apps, editor) -> None:
        thing, part = (apps.get_model("things", name) for name in ("thing", "part"))
        seen.append(
            (thing(size=2).weight, thing._meta.constraints, part._meta.get_field("thing").related_model is thing)
        )

    state = state_of_things()
    assert state.apps.get_model("things", "thing")
    with quick_states(), connection.schema_editor(collect_sql=True, atomic=False) as editor:
        for operation in (migrations.AddConstraint("thing", SMALL), HEAVY):
            operation.state_forwards("things", state)
        migrations.RunPython(look).database_forwards("things", _Asked(editor), state, state)
    assert seen == [(3, [POSITIVE, SMALL], True)]


class _Asked:
    """An editor that lets code of migrations run."""

    def __init__(self, editor) -> None:
        self.connection = editor.connection


def asked_of_the_database(operation) -> list[str]:
    """Return the SQL of an operation that follows another one on the same model."""
    before = state_of_things()
    assert before.apps.get_model("things", "thing")
    HEAVY.state_forwards("things", before)
    after = before.clone()
    operation.state_forwards("things", after)
    with connection.schema_editor(collect_sql=True, atomic=False) as editor:
        operation.database_forwards("things", editor, before, after)
    return editor.collected_sql


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (migrations.AlterField("thing", "id", models.CharField(max_length=9, primary_key=True)), '"things_part"'),
        (migrations.AlterField("thing", "size", models.BigIntegerField()), "bigint"),
        (migrations.AddField("thing", "part", FOREIGN), 'REFERENCES "things_part"'),
        (migrations.RenameField("thing", "id", "key"), '"key"'),
        (migrations.RenameModel("Thing", "Item"), '"things_box_holds" RENAME COLUMN "thing_id" TO "item_id"'),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_change_of_a_table_asks_of_the_database_what_it_asks_in_django(db: None, operation, words: str) -> None:
    slow = asked_of_the_database(operation)
    with quick_states():
        assert asked_of_the_database(operation) == slow
    assert words in " ".join(slow)


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
