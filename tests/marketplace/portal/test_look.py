"""What can be measured of the look: contrast of the colours that we name, and what the files promise."""

import re
from pathlib import Path

import pytest
from django.conf import settings

CSS = (Path(settings.STATICFILES_DIRS[0]) / "gpumarket" / "portal.css").read_text()
TEXT, SIGN = 4.5, 3.0  # WCAG 2.2, 1.4.3 and 1.4.11
# What is written on what.
PAIRS = [
    ("ink", "ground"), ("ink", "panel"), ("quiet", "ground"), ("quiet", "panel"), ("brand", "panel"),
    ("brand", "ground"), ("on-brand", "brand"), ("ink", "brand-soft"), ("good", "good-soft"), ("moving", "moving-soft"),
    ("warn", "warn-soft"), ("bad", "bad-soft"), ("quiet", "quiet-soft"), ("bad", "panel"), ("good", "panel"),
    ("panel", "bad"), ("on-log", "log"),
]  # fmt: skip


def colours(theme: str) -> dict[str, str]:
    """Return the named colours of a theme; dark has those of light where it names none."""
    light = re.search(r":root \{(.*?)\n\}", CSS, re.DOTALL)
    dark = re.search(r'\[data-bs-theme="dark"\] \{(.*?)\n\}', CSS, re.DOTALL)
    assert light
    assert dark
    named = re.compile(r"--([a-z-]+): (#[0-9a-f]{6})")
    return dict(named.findall(light[1])) | (dict(named.findall(dark[1])) if theme == "dark" else {})


def luminance(colour: str) -> float:
    """Return the relative luminance, as WCAG 2.2 defines it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("ink", "paper"), PAIRS)
def test_words_stand_out_from_what_is_behind_them(theme: str, ink: str, paper: str) -> None:
    named = colours(theme)
    darker, lighter = sorted((luminance(named[ink]), luminance(named[paper])))
    assert (lighter + 0.05) / (darker + 0.05) >= TEXT, f"{ink} on {paper}"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_focus_and_chart_marks_stand_out(theme: str) -> None:
    named = colours(theme)
    for mark in ("brand", *(f"tone-{letter}" for letter in "abcdefgh")):
        darker, lighter = sorted((luminance(named[mark]), luminance(named["panel"])))
        assert (lighter + 0.05) / (darker + 0.05) >= SIGN, mark


def test_nothing_moves_for_who_asked_for_stillness() -> None:
    before, motion = CSS.split("@media (prefers-reduced-motion: no-preference)")
    assert "animation" not in before
    assert "animation" in motion
