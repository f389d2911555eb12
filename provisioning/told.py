"""Texts that are kept: written in English, whoever acts, and read by each in their own language.

What is kept is a sentence, which programs read too. It is known again by its form, and its values are filled into the
translation; what people wrote is of no known form and stays as it is. Events say texts that were declared for that:
`NAME = Told(_("..."))` with a lazy text, and `NAME(value=...)` where the event is written. What refused something may
be any text of any room: those are all that have a translation.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

from django.utils import translation
from django.utils.functional import Promise
from django.utils.translation import trans_real

ENGLISH = "en"
PLACEHOLDER = re.compile(r"%\((\w+)\)s")
SENTENCE_ENDS = re.compile(r"(?<=\.) ")
# A value: of one sentence, or whatever stands there.
ONE, ANY = r"(?:(?!\. ).)+?", ".+?"
# A verdict names a verifier and what it said, which names evidence, piece by piece.
DEEPEST = 4
SAYS, LIST = ": ", ", "
REFUSAL = "refusal"
# What people called something is nobody's to translate.
PEOPLES = frozenset({"name", "who", "seller", "text"})
# A text that leaves nearly everything open says nothing that could be known again.
LETTERS_LEAST = 8
_declared: list[Promise] = []


class Told:
    """A text of events. Called with its values it is the English that is written down."""

    def __init__(self, text: Promise) -> None:
        self.text = text
        _declared.append(text)

    def __call__(self, **values: object) -> str:
        """Return the text as it is written down."""
        with translation.override(ENGLISH):
            return str(self.text) % {name: str(value) for name, value in values.items()}


def shown(message: str) -> str:
    """Return what an event says in the reader's language, where it is a declared text."""
    language = _language()
    return _known(language, len(_declared)).said(message) or message if message and language else message


def refused(message: str) -> str:
    """Return why something was refused in the reader's language, sentence by sentence, where it is texts of ours."""
    language = _language()
    return _refused(message, language) if message and language else message


@lru_cache(maxsize=1000)
def _refused(message: str, language: str) -> str:
    known = _catalogue(language)
    if (found := known.said(message, value=ONE)) is not None:
        return found
    sentences = SENTENCE_ENDS.split(message)
    for count in range(len(sentences) - 1, 0, -1):
        first, rest = " ".join(sentences[:count]), " ".join(sentences[count:])
        if (found := known.said(first, value=ONE)) is not None:
            return f"{found} {_refused(rest, language)}"
    return known.said(message) or message


def _language() -> str:
    """Return the reader's language; empty where what was written is in it."""
    language = translation.get_language() or ENGLISH
    return "" if language.startswith(ENGLISH) else language


class _Texts:
    """Texts in English with their translations."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        cut = [(text, tuple(PLACEHOLDER.split(text.replace("%%", "%")))) for text in texts if PLACEHOLDER.search(text)]
        known = [(text, pieces) for text, pieces in cut if _letters(pieces) >= LETTERS_LEAST]
        # Those that leave least open first: a sentence is of the text that says most of it itself.
        self.cut = sorted(known, key=lambda found: (len(found[1]), -_letters(found[1])))

    def said(self, message: str, *, value: str = ANY, deep: int = DEEPEST) -> str | None:
        """Return the translation of what was made of a text with such values, or of who says what; None for others."""
        if not deep:
            return None
        if message in self.texts:
            return self.texts[message]
        for text, pieces in self.cut:
            is_near = message.startswith(pieces[0]) and message.endswith(pieces[-1])
            if is_near and (found := _form(pieces, value).fullmatch(message)):
                values = found.groupdict().items()
                return self.texts[text] % {name: self._value(name, said, deep - 1) for name, said in values}
        who, says, what = message.partition(SAYS)
        speaker = self.said(who, value=ONE, deep=deep - 1) if says else None
        return f"{speaker}{SAYS}{self._value('', what, deep - 1)}" if speaker else None

    def _value(self, name: str, value: str, deep: int) -> str:
        if name in PEOPLES:
            return value
        if name == REFUSAL:
            return refused(value)
        return self.said(value, deep=deep) or LIST.join(
            self.said(part, deep=deep) or part for part in value.split(LIST)
        )


@lru_cache(maxsize=4)
def _known(language: str, count: int) -> _Texts:
    """Return the `count` texts that are declared."""
    texts = _declared[:count]
    with translation.override(ENGLISH):
        english = [str(text) for text in texts]
    with translation.override(language):
        return _Texts(dict(zip(english, map(str, texts), strict=True)))


@lru_cache(maxsize=4)
def _catalogue(language: str) -> _Texts:
    """Return all texts, without those that depend on a number or on where they stand."""
    catalogue: Mapping[object, str] = trans_real.translation(language)._catalog  # type: ignore[attr-defined]
    texts = {text: words for text, words in catalogue.items() if isinstance(text, str) and text and "\x04" not in text}
    return _Texts(texts)


def _letters(pieces: tuple[str, ...]) -> int:
    return sum(letter.isalpha() for piece in pieces[::2] for letter in piece)


@lru_cache(maxsize=1000)
def _form(pieces: tuple[str, ...], value: str) -> re.Pattern[str]:
    named: set[str] = set()
    words = ""
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            words += re.escape(piece)
        elif piece in named:
            words += f"(?P={piece})"
        else:
            # What begins with a value is one sentence, and not the end of somebody's.
            words += f"(?P<{piece}>{value if words else ONE})"
            named.add(piece)
    return re.compile(words, re.DOTALL)
