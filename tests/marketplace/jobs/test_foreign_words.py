"""What the parser of YAML and the reader of manifests say in English is known again, for readers of Japanese."""

import json
from typing import Any

import pytest
import yaml
from django.utils import translation

from marketplace.contracts import timeline
from marketplace.jobs import reading, yaml_texts
from provisioning import manifest_texts, told
from provisioning.agent import manifest

FILE = {"path": "a", "sha256": "0" * 64, "size": 1, "mode": 420}
MANIFESTS: list[Any] = [
    {}, [FILE, FILE], [FILE, FILE | {"path": "a/b"}], [FILE | {"path": "/a"}], [FILE | {"path": "../a"}],
    [FILE | {"path": "\ud800"}], [FILE | {"path": "a" * 300}], [1], [FILE | {"sha256": ""}], [FILE | {"size": -1}],
    [FILE | {"mode": -1}], [FILE],
]  # fmt: skip
NO_YAML = [
    "a: b: c\n", "\tx: 1\n", "a: 'x\n", "- a\nb: c\n", "a: {b\n", "a: [b\nc: d\n", "%x\n", 'a: "\\q"\n', "a: 1\nb\n",
    "---\na: 1\n---\nb: 2\n", "a: ]\n", "a: |x\n b\n",
]  # fmt: skip


def is_known(words: str) -> bool:
    """Return whether these are known again, also where nobody has translated them yet."""
    return told._known("ja", len(told._declared)).said(words) is not None


@pytest.mark.parametrize("found", MANIFESTS)
def test_each_fault_of_a_manifest_is_known(found: Any) -> None:
    with pytest.raises(manifest.BadManifest) as fault:
        manifest.read(json.dumps(found).encode())
    assert is_known(str(fault.value))
    assert manifest_texts.said(fault.value) == str(fault.value)


@pytest.mark.parametrize("data", [b"{", b" " * (manifest.MANIFEST_BYTES_MAX + 1)])
def test_what_is_no_list_of_files_at_all_is_known(data: bytes) -> None:
    with pytest.raises(manifest.BadManifest) as fault:
        manifest.read(data)
    assert is_known(str(fault.value))


@pytest.mark.parametrize("text", NO_YAML)
def test_what_keeps_a_file_from_being_yaml_is_known(text: str) -> None:
    with pytest.raises(reading.Unreadable, match=r"^This is not YAML: ") as fault:
        reading.document_of(text)
    assert isinstance(fault.value.__cause__, yaml.MarkedYAMLError)
    assert is_known(yaml_texts.said(fault.value.__cause__))


def test_what_is_known_is_said_in_the_reader_s_language_and_the_rest_as_it_is() -> None:
    with translation.override("ja"):
        assert yaml_texts.said(yaml.MarkedYAMLError(problem=timeline.SILENCE_ACCEPTS())) != timeline.SILENCE_ACCEPTS()
        assert yaml_texts.said(yaml.MarkedYAMLError(problem="words of a later parser")) == "words of a later parser"
        assert manifest_texts.said(manifest.BadManifest(timeline.SILENCE_ACCEPTS())) != timeline.SILENCE_ACCEPTS()
