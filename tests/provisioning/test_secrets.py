"""What is sealed can be read by this marketplace alone, and after its key has changed too."""

from typing import Any

import pytest

from provisioning.secrets import Unreadable, resealed, seal, unseal

FIRST, SECOND, THIRD = ("one-key-" * 8, "two-key-" * 8, "3rd-key-" * 8)


def test_what_is_sealed_comes_back_and_shows_nothing() -> None:
    sealed = seal("pässword 鍵")
    assert unseal(sealed) == "pässword 鍵"
    assert "ssword" not in sealed
    assert seal("pässword 鍵") != sealed


def test_a_former_key_still_opens(settings: Any) -> None:
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = FIRST, []
    sealed = seal("hunter2")
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = SECOND, [FIRST]
    assert unseal(sealed) == "hunter2"


def test_a_key_that_is_forgotten_opens_nothing(settings: Any) -> None:
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = FIRST, []
    sealed = seal("hunter2")
    settings.SECRET_KEY = SECOND
    with pytest.raises(Unreadable):
        unseal(sealed)
    with pytest.raises(Unreadable):
        resealed(sealed)


def test_what_is_resealed_needs_the_former_key_no_more(settings: Any) -> None:
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = FIRST, []
    sealed = seal("hunter2")
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = SECOND, [FIRST]
    again = resealed(sealed)
    settings.SECRET_KEY_FALLBACKS = []
    assert unseal(again) == "hunter2"


@pytest.mark.parametrize("damaged", ["", "no token", "gAAAAA", "é"])
def test_what_was_never_sealed_is_unreadable(damaged: str) -> None:
    with pytest.raises(Unreadable):
        unseal(damaged)


def test_a_changed_seal_is_noticed() -> None:
    sealed = seal("hunter2")
    middle = len(sealed) // 2
    changed = sealed[:middle] + ("A" if sealed[middle] != "A" else "B") + sealed[middle + 1 :]
    with pytest.raises(Unreadable):
        unseal(changed)
