"""What keeps something from starting: written down by a sweep in English, read by each in their own language.

It is whatever refused the start, so its words are texts of any room. They are
found again in the catalogue by their form; what is of no known form stays as it is.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

from django.utils import translation
from django.utils.translation import trans_real

ENGLISH = "en"
PLACEHOLDER = re.compile(r"%\((\w+)\)s")
SENTENCE_ENDS = re.compile(r"(?<=\.) ")
LIST = ", "
# A refusal names an owner of a budget, who has a name, which is nobody's to translate.
DEEPEST = 2
NAME = "name"
# A text that leaves nearly everything open says nothing that could be known again.
LETTERS_LEAST = 8


def said(message: str) -> str:
    """Return why something does not start in the reader's language, as far as those are texts of ours."""
    language = translation.get_language() or ENGLISH
    return message if not message or language.startswith(ENGLISH) else _said(message, language)


@lru_cache(maxsize=1000)
def _said(message: str, language: str) -> str:
    found = _translated(message, language, DEEPEST)
    if found is not None:
        return found
    sentences = SENTENCE_ENDS.split(message)
    for count in range(len(sentences) - 1, 0, -1):
        first, rest = " ".join(sentences[:count]), " ".join(sentences[count:])
        if (found := _translated(first, language, DEEPEST)) is not None:
            return f"{found} {_said(rest, language)}"
    return message


def _translated(message: str, language: str, deep: int) -> str | None:
    """Return the translation of one text with its values; of several forms of the one that says most itself."""
    texts = _texts(language)
    if message in texts:
        return texts[message]
    for text, pieces in _forms(language):
        if not message.startswith(pieces[0]) or not message.endswith(pieces[-1]):
            continue
        if found := _form(pieces).fullmatch(message):
            values = found.groupdict().items()
            return texts[text] % {name: _value(name, value, language, deep) for name, value in values}
    return None


def _value(name: str, value: str, language: str, deep: int) -> str:
    if name == NAME or not deep:
        return value
    return LIST.join(_translated(part, language, deep - 1) or part for part in value.split(LIST))


@lru_cache(maxsize=4)
def _texts(language: str) -> Mapping[str, str]:
    """Return the translation of each text, without those that depend on a number or on where they stand."""
    catalogue: Mapping[object, str] = trans_real.translation(language)._catalog  # type: ignore[attr-defined]
    return {text: words for text, words in catalogue.items() if isinstance(text, str) and text and "\x04" not in text}


@lru_cache(maxsize=4)
def _forms(language: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the texts with values, cut at these, those that leave least open first."""
    cut = [(text, tuple(PLACEHOLDER.split(text))) for text in _texts(language) if PLACEHOLDER.search(text)]
    known = [(text, pieces) for text, pieces in cut if _letters(pieces) >= LETTERS_LEAST]
    return sorted(known, key=lambda one: (len(one[1]), -_letters(one[1])))


def _letters(pieces: tuple[str, ...]) -> int:
    return sum(letter.isalpha() for piece in pieces[::2] for letter in piece)


@lru_cache(maxsize=1000)
def _form(pieces: tuple[str, ...]) -> re.Pattern[str]:
    named: set[str] = set()
    words = ""
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            words += re.escape(piece.replace("%%", "%"))
        elif piece in named:
            words += f"(?P={piece})"
        else:
            named.add(piece)
            words += rf"(?P<{piece}>(?:(?!\. ).)+?)"
    return re.compile(words, re.DOTALL)
