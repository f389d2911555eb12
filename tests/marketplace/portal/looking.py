"""How a test in a browser looks at pages: nothing may be wider than its window, and whoever wants pictures gets them.

`GPUMARKET_SHOTS=FOLDER` keeps each page that is looked at as NAME-WIDTH-THEME.png. The pictures in `docs/` are such.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SHOTS = os.environ.get("GPUMARKET_SHOTS", "")
WIDE, PHONE = (1280, 900), (390, 844)
PATIENCE_S = 15

# What reaches beyond the right edge, for whoever has to mend it.
WIDEST = """[...document.querySelectorAll("main *")].filter(
    one => one.getBoundingClientRect().right > document.documentElement.clientWidth && !one.closest(".heat-box")
).slice(0, 5).map(one => one.outerHTML.slice(0, 120))"""


def look(page: Any, name: str) -> None:
    """Look at an open page, wide and on a phone; pictures are taken light and dark."""
    for size in (WIDE, PHONE):
        _fits(page, name, size)
        for scheme in ("light", "dark") if SHOTS else ():
            page.evaluate("theme => document.documentElement.setAttribute('data-bs-theme', theme)", scheme)
            _shoot(page, f"{name}-{size[0]}-{scheme}")
        page.evaluate("document.documentElement.setAttribute('data-bs-theme', 'light')")
    page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})


def tour(page: Any, addresses: Iterable[str], *, language: str) -> None:
    """Look at pages one after the other, on a phone in another language, which stays chosen."""
    page.click(".person summary")
    page.click(f".person [name=language][value={language}]")
    page.wait_for_selector(f"html[lang={language}]")
    for address in addresses:
        page.goto(address)
        _fits(page, f"{address} in {language}", PHONE)
        if SHOTS:
            _shoot(page, f"{address.strip('/').replace('/', '.')[:60]}-{PHONE[0]}-{language}")
    page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})


def _fits(page: Any, name: str, size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    limit = time.monotonic() + PATIENCE_S
    # The window has its new size at once, and the page its own a moment later. A page's policy lets no text be waited
    # for as code in it.
    while page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        assert time.monotonic() < limit, f"{name} is wider than {size[0]}: {page.evaluate(WIDEST)}"
        page.wait_for_timeout(50)


def _shoot(page: Any, name: str) -> None:
    page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True, animations="disabled")
