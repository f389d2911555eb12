"""How people come in: what allauth asks us while somebody signs up or in."""

from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from django.http import HttpRequest

from marketplace import tenants
from marketplace.models import User


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    """Gives a person who signs up an organization of their own, unless an invitation brought them."""

    def save_user(self, request: HttpRequest, user: User, form: Any, commit: bool = True) -> User:
        user = super().save_user(request, user, form, commit=commit)
        if commit and "invitation" not in request.session:
            name = user.email.split("@")[0]
            tenants.found_organization(owner=user, name=name, request_id=getattr(request, "id", ""))
        return user
