"""Texts that stand in events: written in English, whoever acts, and shown to each reader in their own language.

An event keeps what happened as a sentence, which programs read too. A text is known again by its form, and its values
are filled into the translation; what people wrote is of no known form and stays as it is.

To add one: `NAME = Told(_("..."))` with a lazy text, and `NAME(value=...)` where the event is written.
"""

import re
from functools import lru_cache

from django.utils import translation
from django.utils.functional import Promise

ENGLISH = "en"
PLACEHOLDER = re.compile(r"%\((\w+)\)s")
# A verdict names a verifier and what it said, which names evidence, piece by piece.
DEEPEST = 4
SAYS, LIST = ": ", ", "
_known: list[Promise] = []


class Told:
    """A text of events. Called with its values it is the English that is written down."""

    def __init__(self, text: Promise) -> None:
        self.text = text
        _known.append(text)

    def __call__(self, **values: object) -> str:
        """Return the text as it is written down."""
        with translation.override(ENGLISH):
            return str(self.text) % {name: str(value) for name, value in values.items()}


def shown(message: str) -> str:
    """Return what an event says in the reader's language, where it is one of our texts."""
    if not message or (translation.get_language() or ENGLISH).startswith(ENGLISH):
        return message
    return _shown(message, DEEPEST)


def _shown(message: str, deep: int) -> str:
    found = _found(message) if deep else None
    if found is not None:
        text, values = found
        return str(text) % {name: _shown(value, deep - 1) for name, value in values.items()}
    who, says, what = message.partition(SAYS)
    if says and _found(who):
        return f"{_shown(who, deep - 1)}{SAYS}{_shown(what, deep - 1)}"
    parts = message.split(LIST)
    if len(parts) > 1 and all(map(_found, parts)):
        return LIST.join(_shown(part, deep - 1) for part in parts)
    return message


def _found(message: str) -> tuple[Promise, dict[str, str]] | None:
    """Return the text that a message was made of, and its values; of several the one that says most itself."""
    for form, text in _forms(len(_known)):
        if is_made := form.fullmatch(message):
            return text, is_made.groupdict()
    return None


@lru_cache(maxsize=1)
def _forms(count: int) -> list[tuple[re.Pattern[str], Promise]]:
    """Return the forms of the `count` texts that are known, those that leave least open first."""
    with translation.override(ENGLISH):
        found = [(str(text), text) for text in _known[:count]]
    found.sort(key=lambda one: (len(PLACEHOLDER.findall(one[0])), -len(PLACEHOLDER.sub("", one[0]))))
    return [(_form(english), text) for english, text in found]


def _form(english: str) -> re.Pattern[str]:
    pieces = PLACEHOLDER.split(english)
    words = [f"(?P<{piece}>.+)" if number % 2 else re.escape(piece) for number, piece in enumerate(pieces)]
    if not pieces[0]:
        words[1] = f"(?P<{pieces[1]}>[^.]+)"  # What begins with a value is one sentence, and not the end of somebody's.
    return re.compile("".join(words), re.DOTALL)
