"""Manifests: one form for one folder, and nothing in them that leads out of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.agent import manifest
from provisioning.agent.manifest import BadManifest, Entry

SHA = "a" * 64
names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0"), min_size=1, max_size=8
).filter(lambda name: name not in {".", ".."})  # fmt: skip
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@given(
    st.lists(st.tuples(paths, st.integers(0, 2**53), st.integers(0, 0o777)), max_size=6, unique_by=lambda one: one[0])
)
def test_a_folder_has_one_manifest_and_it_is_read_as_it_was_written(found: list[tuple[str, int, int]]) -> None:
    entries = [Entry(path, SHA, size, mode) for path, size, mode in found]
    try:
        data = manifest.written(entries)
    except BadManifest:
        assert any(f"{one[0]}/" in other[0] for one in found for other in found)
        return
    assert manifest.written(reversed(entries)) == data
    assert manifest.read(data) == tuple(sorted(entries))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc/passwd", "not a relative path"),
        ("../out", "leads out"),
        ("a/../../out", "leads out"),
        ("a//b", "leads out"),
        ("./a", "leads out"),
        ("a/", "leads out"),
        ("a\\b", "leads out"),
        ("a\0b", "leads out"),
        ("", "not a relative path"),
        ("x" * 256, "too long"),
    ],
)
def test_no_path_leads_out_of_its_folder(path: str, why: str) -> None:
    with pytest.raises(BadManifest, match=why):
        manifest.written([Entry(path, SHA, 1, 0o644)])


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[1]", b"[" * 100_000, b'[{"path":"a"}]',
        json.dumps([{"path": "a", "sha256": SHA, "size": 1, "mode": 420}]).encode(),  # With blanks.
        b'[{"mode":420,"path":"b","sha256":"%s","size":1},{"mode":420,"path":"a","sha256":"%s","size":1}]'
        % (SHA.encode(), SHA.encode()),  # Not sorted.
        b'[{"mode":2541,"path":"a","sha256":"%s","size":1}]' % SHA.encode(),  # Setuid.
        b'[{"mode":420,"path":"a","sha256":"%s","size":1.0}]' % SHA.encode(),
    ],
)  # fmt: skip
def test_what_is_not_in_the_one_form_is_no_manifest(data: bytes) -> None:
    with pytest.raises(BadManifest):
        manifest.read(data)
