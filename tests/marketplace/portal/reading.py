"""A page as a test reads it: its words, its elements, and what may not be in it."""

from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser

from django.http import HttpResponse

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
# Elements whose text is no prose: programs, and things typed by people or machines.
NO_PROSE = {"script", "style", "code", "pre", "textarea"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """The elements of a page in order, and its text by the element that it stands in."""

    html: str
    elements: list[Element] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)
    unclosed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[Element] = []
        self.feed(self.html)
        self.unclosed += [element.tag for element in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1].tag == tag:
            self.open.pop()
        else:
            self.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data
        if data.strip() and not any(element.tag in NO_PROSE for element in self.open):
            self.prose.append(data.strip())

    @property
    def text(self) -> str:
        """All words of the page with single blanks between them."""
        return " ".join(" ".join(self.prose).split())

    def all(self, tag: str, **attributes: str) -> list[Element]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            element for element in self.elements if element.tag == tag and wanted.items() <= element.attributes.items()
        ]

    def value(self, name: str) -> str:
        """What stands in a field of a form."""
        for element in self.elements:
            if element.attributes.get("name") == name and element.tag in {"input", "textarea"}:
                return element.attributes.get("value", "") if element.tag == "input" else element.text
        raise AssertionError(f"no field {name}")


def read(response: HttpResponse) -> Page:
    return Page(response.content.decode())


def faults(page: Page) -> list[str]:
    """What breaks the content policy, or keeps somebody from using the page."""
    found = []
    ids = Counter(element.attributes["id"] for element in page.elements if "id" in element.attributes)
    found += [f"id {name} stands twice" for name, count in ids.items() if count > 1]
    labelled = {label.attributes.get("for") for label in page.all("label")}
    for element in page.elements:
        attributes = element.attributes
        found += [f"{element.tag} has {name}" for name in attributes if name == "style" or name.startswith("on")]
        if element.tag == "style" or (element.tag == "script" and "src" not in attributes):
            found.append(f"inline {element.tag}")
        is_field = element.tag in {"input", "select", "textarea"} and attributes.get("type") != "hidden"
        if is_field and attributes.get("id") not in labelled and "aria-label" not in attributes:
            found.append(f"{attributes.get('name')} has no label")
        for name in ("aria-labelledby", "aria-describedby"):
            found += [f"{name} {target} is nowhere" for target in attributes.get(name, "").split() if target not in ids]
        if element.tag in {"a", "button"} and not element.text.strip():
            found.append(f"{element.tag} without words: {attributes}")
    found += [f"{tag} is not closed" for tag in page.unclosed]
    found += [] if len(page.all("h1")) == 1 else ["not exactly one h1"]
    found += [] if page.all("main", id="content") else ["no main"]
    found += [] if "lang" in page.all("html")[0].attributes else ["no language"]
    return found
