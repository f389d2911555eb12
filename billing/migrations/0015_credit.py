"""Credit with an end, limits of credit, and what customers are told."""

import billing.public_ids
import django.db.models.deletion
import django.db.models.expressions
from django.conf import settings
from django.db import migrations, models


# Credit that was given before anybody wrote down until when: it never expires.
GRANTS = """
INSERT INTO billing_creditgrant
    (public_id, account_id, cause, reason, amount_micros, left_micros, expired_micros, granted_at)
SELECT 'cgr_' || substr(md5(public_id), 1, 20), id, 'before:' || public_id, 'Credit', balance_micros, balance_micros, 0,
       now()
FROM billing_account WHERE kind = 'promo' AND balance_micros > 0
"""


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0014_charges_in_sets"),
        ("marketplace", "0010_reservations_and_resale"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="CreditGrant",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="cgr")),
                (
                    "cause",
                    models.CharField(help_text="the key of the transfer that gave it", max_length=200, unique=True),
                ),
                ("reason", models.CharField(max_length=200)),
                ("amount_micros", models.BigIntegerField()),
                ("left_micros", models.BigIntegerField()),
                ("expired_micros", models.BigIntegerField(default=0)),
                ("granted_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
            ],
        ),
        migrations.CreateModel(
            name="CreditLine",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "state",
                    models.CharField(
                        choices=[("proposed", "proposed"), ("approved", "approved"), ("declined", "declined")],
                        default="proposed",
                        max_length=8,
                    ),
                ),
                ("key", models.UUIDField(unique=True)),
                ("proposed_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(null=True)),
                ("public_id", billing.public_ids.PublicIdField(prefix="crl")),
                ("limit_micros", models.BigIntegerField()),
                ("net_days", models.PositiveSmallIntegerField()),
                ("reason", models.CharField(max_length=200)),
            ],
        ),
        migrations.CreateModel(
            name="Notice",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", billing.public_ids.PublicIdField(prefix="ntc")),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("runway_week", "Money for a week"),
                            ("runway_day", "Money for a day"),
                            ("runway_hour", "Money for an hour"),
                            ("used_up", "Money used up"),
                            ("volumes_kept", "Volumes kept unpaid"),
                            ("volumes_soon", "Volumes to be deleted soon"),
                            ("volumes_deleted", "Volumes deleted"),
                        ],
                        max_length=24,
                    ),
                ),
                ("key", models.CharField(max_length=200, unique=True)),
                ("facts", models.JSONField(default=dict)),
                ("created_at", models.DateTimeField()),
                ("tries", models.PositiveSmallIntegerField(default=0)),
                ("next_try_at", models.DateTimeField()),
                ("sent_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="RunwayWatch",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "rung",
                    models.CharField(
                        choices=[
                            ("enough", "more than a week"),
                            ("week", "a week"),
                            ("day", "a day"),
                            ("hour", "an hour"),
                            ("used_up", "used up"),
                        ],
                        default="enough",
                        max_length=8,
                    ),
                ),
                ("crossing", models.PositiveIntegerField(default=1)),
                ("since", models.DateTimeField()),
                ("grace_ends_at", models.DateTimeField(null=True)),
            ],
            options={
                "verbose_name_plural": "runway watches",
            },
        ),
        migrations.RemoveConstraint(
            model_name="account",
            name="account_holds_cash_or_promo_only",
        ),
        migrations.RemoveConstraint(
            model_name="account",
            name="account_kind_fits_its_owner",
        ),
        migrations.AddField(
            model_name="account",
            name="credit_limit_micros",
            field=models.BigIntegerField(default=0, help_text="of a receivable: how much may be owed"),
        ),
        migrations.AlterField(
            model_name="account",
            name="kind",
            field=models.CharField(
                choices=[
                    ("cash", "Cash"),
                    ("promo", "Promotional credit"),
                    ("receivable", "Receivable"),
                    ("payable", "Payable"),
                    ("reserve", "Reserve"),
                    ("revenue", "Revenue"),
                    ("fees", "Fees"),
                    ("tax", "Tax"),
                    ("sla_expense", "Service credits"),
                    ("processor", "Payment processor"),
                    ("bank", "Our bank account"),
                    ("promo_expense", "Promotional expense"),
                    ("deferred", "Paid ahead"),
                    ("bad_debt", "Bad debts"),
                ],
                max_length=16,
            ),
        ),
        migrations.AddConstraint(
            model_name="account",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        (
                            "kind__in",
                            (
                                "revenue",
                                "fees",
                                "tax",
                                "sla_expense",
                                "processor",
                                "bank",
                                "promo_expense",
                                "deferred",
                                "bad_debt",
                            ),
                        ),
                        ("organization__isnull", True),
                    ),
                    models.Q(
                        ("kind__in", ("promo", "cash", "receivable", "payable", "reserve")),
                        ("organization__isnull", False),
                    ),
                    _connector="OR",
                ),
                name="account_kind_fits_its_owner",
            ),
        ),
        migrations.AddConstraint(
            model_name="account",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("held_micros", 0),
                    models.Q(("held_micros__gt", 0), ("kind__in", ("cash", "promo", "receivable"))),
                    _connector="OR",
                ),
                name="account_holds_what_customers_pay_from",
            ),
        ),
        migrations.AddConstraint(
            model_name="account",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("credit_limit_micros", 0),
                    models.Q(("credit_limit_micros__gt", 0), ("kind", "receivable")),
                    _connector="OR",
                ),
                name="account_gives_credit_on_what_is_owed_only",
            ),
        ),
        migrations.AddField(
            model_name="creditgrant",
            name="account",
            field=models.ForeignKey(
                db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name="grants", to="billing.account"
            ),
        ),
        migrations.AddField(
            model_name="creditline",
            name="decided_by",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="creditline",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="credit_lines", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="creditline",
            name="proposed_by",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="notice",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="notices", to="marketplace.organization"
            ),
        ),
        migrations.AddField(
            model_name="runwaywatch",
            name="organization",
            field=models.OneToOneField(
                on_delete=django.db.models.deletion.PROTECT, related_name="runway_watch", to="marketplace.organization"
            ),
        ),
        migrations.AddIndex(
            model_name="creditgrant",
            index=models.Index(fields=["account", "expires_at"], name="credit_grant_by_account"),
        ),
        migrations.AddIndex(
            model_name="creditgrant",
            index=models.Index(
                condition=models.Q(("left_micros__gt", 0)), fields=["expires_at"], name="credit_grant_to_expire"
            ),
        ),
        migrations.AddConstraint(
            model_name="creditgrant",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "amount_micros__gte",
                        django.db.models.expressions.CombinedExpression(
                            models.F("left_micros"), "+", models.F("expired_micros")
                        ),
                    ),
                    ("expired_micros__gte", 0),
                    ("left_micros__gte", 0),
                ),
                name="credit_grant_has_no_more_left_than_it_gave",
            ),
        ),
        migrations.AddConstraint(
            model_name="creditgrant",
            constraint=models.CheckConstraint(
                condition=models.Q(("expires_at", None), ("expires_at__gt", models.F("granted_at")), _connector="OR"),
                name="credit_grant_expires_afterwards",
            ),
        ),
        migrations.AddConstraint(
            model_name="creditgrant",
            constraint=models.CheckConstraint(
                condition=models.Q(("expired_micros", 0), ("expires_at__isnull", False), _connector="OR"),
                name="credit_without_expiry_never_expires",
            ),
        ),
        migrations.AddIndex(
            model_name="creditline",
            index=models.Index(fields=["organization", "-id"], name="credit_line_newest_first"),
        ),
        migrations.AddConstraint(
            model_name="creditline",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("decided_by", None), ("state", "proposed")),
                    models.Q(("decided_by__isnull", False), ("state", "declined")),
                    models.Q(
                        ("decided_by__isnull", False),
                        ("state", "approved"),
                        models.Q(("decided_by", models.F("proposed_by")), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="credit_line_needs_a_second_person",
            ),
        ),
        migrations.AddConstraint(
            model_name="creditline",
            constraint=models.CheckConstraint(
                condition=models.Q(("limit_micros__gte", 0)), name="credit_line_is_never_negative"
            ),
        ),
        migrations.AddConstraint(
            model_name="creditline",
            constraint=models.CheckConstraint(
                condition=models.Q(("net_days__lte", 120)), name="credit_line_is_paid_within_120_days"
            ),
        ),
        migrations.AddConstraint(
            model_name="creditline",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "proposed")),
                fields=("organization",),
                name="credit_line_proposed_once_at_a_time",
            ),
        ),
        migrations.AddIndex(
            model_name="notice",
            index=models.Index(condition=models.Q(("sent_at", None)), fields=["next_try_at"], name="notice_to_send"),
        ),
        migrations.AddIndex(
            model_name="notice",
            index=models.Index(fields=["organization", "-id"], name="notice_newest_first"),
        ),
        migrations.AddIndex(
            model_name="runwaywatch",
            index=models.Index(
                condition=models.Q(("rung", "used_up")), fields=["grace_ends_at"], name="runway_watch_used_up"
            ),
        ),
        migrations.AddConstraint(
            model_name="runwaywatch",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("grace_ends_at__isnull", False), ("rung", "used_up")),
                    models.Q(models.Q(("rung", "used_up"), _negated=True), ("grace_ends_at", None)),
                    _connector="OR",
                ),
                name="runway_watch_has_a_grace_once_all_is_used_up",
            ),
        ),
        migrations.RunSQL(GRANTS, migrations.RunSQL.noop),
    ]
