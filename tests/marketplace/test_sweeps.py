"""Beat sends names: each has to be that of a task which a worker knows."""

from marketplace.celery import app


def test_every_sweep_of_the_schedule_is_a_task():
    app.loader.import_default_modules()
    assert {entry["task"] for entry in app.conf.beat_schedule.values()} <= set(app.tasks)


def test_the_beat_charges_the_organizations_of_every_part() -> None:
    charges = [
        entry["args"] for entry in app.conf.beat_schedule.values() if entry["task"] == "billing.tasks.charge_due"
    ]
    parts = len(charges)
    assert parts > 1
    assert sorted(charges) == [[part, parts] for part in range(parts)]
