"""The back office: every row of the three rooms to look at, none to change. Changes are verbs of the console."""

from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.contrib.admin.sites import AdminSite
from django.db import models
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, resolve_url
from django.utils.translation import gettext_lazy as _

ROOMS = ("marketplace", "provisioning", "billing")
# What lets somebody in, and what belongs to customers alone: their variables, their output, their answers.
HIDDEN = {
    "password",
    "key_hash",
    "secret_hash",
    "sealed_password",
    "fingerprint",
    "lease_token",
    "token_sealed",
    "secret_sealed",
    "former_secret_sealed",
    "answer",
    "env",
    "body",
    "data",
    "payload",
}
SEARCHED = {"public_id", "name", "email", "key"}
COLUMNS_MAX = 9
BULKY = (models.JSONField, models.TextField, models.BinaryField)


class BackOffice(AdminSite):
    """Django's admin for superusers alone, without its own sign-in and password pages."""

    site_header = site_title = "gpumarket"
    index_title = _("Back office: look, do not touch")
    empty_value_display = "–"

    def has_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_active and request.user.is_superuser)

    def admin_view(self, view: Callable[..., Any], cacheable: bool = False) -> Any:
        """Tell everybody else who is signed in that nothing is here."""
        opened = super().admin_view(view, cacheable)

        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if request.user.is_authenticated and not self.has_permission(request):
                raise Http404
            response: HttpResponse = opened(request, *args, **kwargs)
            return response

        return guarded

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponseRedirect:
        return redirect(f"{resolve_url('account_login')}?next={resolve_url('admin:index')}")

    def logout(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        return redirect("account_logout")

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        return redirect("account_change_password")


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Rows are looked at here and changed elsewhere; secrets and customers' own data are not shown at all."""

    ordering = ("-pk",)
    show_full_result_count = False
    actions = None

    def get_fields(self, request: HttpRequest, obj: models.Model | None = None) -> list[Any]:
        return [field.name for field in self._shown()]

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        shown = [field for field in self._shown() if not isinstance(field, BULKY)]
        names = [field.name for field in sorted(shown, key=lambda field: field.is_relation)]
        return [name for name in names if name != "id" or "public_id" not in names][:COLUMNS_MAX]

    def get_search_fields(self, request: HttpRequest) -> list[str]:
        return [field.name for field in self._shown() if field.name in SEARCHED and not field.is_relation]

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[models.Model]:
        rows: models.QuerySet[models.Model] = super().get_queryset(request)
        related = _related(self.model)
        return rows.select_related(*related) if related else rows

    def _shown(self) -> list[models.Field]:  # type: ignore[type-arg]
        return [field for field in self.model._meta.concrete_fields if field.name not in HIDDEN]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return back_office.has_permission(request)


def _related(model: type[models.Model]) -> list[str]:
    """Return what a row's line names: the rows that it refers to, and those that these name in turn."""
    direct = [field for field in model._meta.concrete_fields if field.is_relation]
    names = [field.name for field in direct]
    for field in direct:
        target = field.related_model
        assert isinstance(target, type)
        names += [f"{field.name}__{far.name}" for far in target._meta.concrete_fields if far.is_relation]
    return names


back_office = BackOffice()
for room in ROOMS:
    for model in apps.get_app_config(room).get_models():
        back_office.register(model, ReadOnlyAdmin)
