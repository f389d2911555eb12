"""Quotas against a model of a few lines: whatever is asked in whatever order, both hold the same."""

import secrets
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from marketplace import tenants
from marketplace.access import person
from marketplace.models import User
from provisioning import quotas
from provisioning.errors import QuotaExceeded
from provisioning.models import Quota

MODELS, MARKETS = ["H200", "L40S"], ["on_demand", "spot"]
Hold = tuple[int, str, str, int]
Words = tuple[int | None, str, str]


class QuotaMachine(RuleBasedStateMachine):
    """Two projects of one organization; `limits` by owner (None is the organization), model and market."""

    def __init__(self) -> None:
        super().__init__()
        owner = User.objects.create_user(f"{secrets.token_hex(8)}@machine.example")
        self.organization = tenants.found_organization(owner=owner, name="Machine")
        self.projects = [
            self.organization.projects.get().pk,
            tenants.create_project(actor=person(owner), organization=self.organization, name="two").pk,
        ]
        self.limits: dict[Words, int] = {(None, "", ""): 64}
        self.limits |= {(project, "", ""): 16 for project in self.projects}
        self.holds: dict[str, Hold] = {}
        self.count = 0

    def holder(self) -> str:
        return f"ins_{self.organization.pk}_{self.count}"

    def held(self, words: Words) -> int:
        owner, model, market = words
        return sum(
            gpus
            for project, hold_model, hold_market, gpus in self.holds.values()
            if owner in (None, project) and model in ("", hold_model) and market in ("", hold_market)
        )

    @rule(which=st.sampled_from([0, 1]), model=st.sampled_from(MODELS), market=st.sampled_from(MARKETS),
          gpus=st.integers(1, 12))  # fmt: skip
    def take(self, which: int, model: str, market: str, gpus: int) -> None:
        project = self.projects[which]
        applies = [
            words for words in self.limits
            if words[0] in (None, project) and words[1] in ("", model) and words[2] in ("", market)
        ]  # fmt: skip
        fits = all(self.held(words) + gpus <= self.limits[words] for words in applies)
        self.count += 1
        order: dict[str, Any] = {"gpu_model": model, "market": market, "gpus": gpus, "micros_per_hour": gpus}
        try:
            quotas.take(holder=self.holder(), project_id=project, **order)
        except QuotaExceeded as refusal:
            assert not fits
            named = (None if refusal.is_organization else project, refusal.gpu_model, refusal.market)
            assert self.held(named) + gpus > self.limits[named]
        else:
            assert fits
            self.holds[self.holder()] = (project, model, market, gpus)

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from([*self.holds, "ins_never"]))
        quotas.give_back(holder=holder)
        self.holds.pop(holder, None)

    @rule(which=st.sampled_from([None, 0, 1]), model=st.sampled_from(["", *MODELS]),
          market=st.sampled_from(["", *MARKETS]), limit=st.integers(0, 40))  # fmt: skip
    def set_limit(self, which: int | None, model: str, market: str, limit: int) -> None:
        owner: dict[str, int] = (
            {"organization_id": self.organization.pk} if which is None else {"project_id": self.projects[which]}
        )
        quotas.set_limit(limit=limit, gpu_model=model, market=market, **owner)
        self.limits[None if which is None else self.projects[which], model, market] = limit

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if narrow := [words for words in self.limits if words[1] or words[2]]:
            words = data.draw(st.sampled_from(narrow))
            owner, model, market = words
            quota = Quota.objects.get(organization=self.organization, project=owner, gpu_model=model, market=market)
            quotas.remove(quota=quota)
            del self.limits[words]

    @invariant()
    def both_hold_the_same(self) -> None:
        rows = Quota.objects.filter(organization=self.organization)
        found = {(row.project_id, row.gpu_model, row.market): (row.limit, row.held) for row in rows}
        assert found == {words: (limit, self.held(words)) for words, limit in self.limits.items()}


@pytest.mark.django_db
def test_whatever_is_asked_in_whatever_order_the_model_agrees() -> None:
    run_state_machine_as_test(
        QuotaMachine,
        settings=settings(
            max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
