"""What is written once and never changed; and money that stays in its currency."""

from django.db import migrations

REFUSE = """
CREATE FUNCTION billing_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$
"""

ONE_CURRENCY = """
CREATE FUNCTION billing_refuse_exchange() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT count(DISTINCT currency) FROM billing_account WHERE id IN (NEW.source_id, NEW.target_id)) > 1 THEN
        RAISE EXCEPTION 'transfer % changes currency', NEW.key USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$
"""


def append_only(table):
    """Refuse UPDATE and DELETE of any row of the table."""
    return migrations.RunSQL(
        f"CREATE TRIGGER {table}_is_append_only BEFORE UPDATE OR DELETE ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION billing_refuse_change()",
        f"DROP TRIGGER {table}_is_append_only ON {table}",
    )


class Migration(migrations.Migration):
    dependencies = [("billing", "0002_owners_and_constraints")]

    operations = [
        migrations.RunSQL(REFUSE, "DROP FUNCTION billing_refuse_change"),
        migrations.RunSQL(ONE_CURRENCY, "DROP FUNCTION billing_refuse_exchange"),
        append_only("billing_transfer"),
        append_only("billing_charge"),
        append_only("billing_priceversion"),
        migrations.RunSQL(
            "CREATE TRIGGER billing_transfer_in_one_currency BEFORE INSERT ON billing_transfer "
            "FOR EACH ROW EXECUTE FUNCTION billing_refuse_exchange()",
            "DROP TRIGGER billing_transfer_in_one_currency ON billing_transfer",
        ),
    ]
