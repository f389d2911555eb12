"""An image is named exactly, or the customer is told what to change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.images import BadImage, Reference, host_of_registry, parse

SHA256 = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("localhost/busybox:1", Reference("localhost", "busybox", "1")),
        ("registry.example.com/a/b-c/d_e:v1.2-RC", Reference("registry.example.com", "a/b-c/d_e", "v1.2-RC")),
        ("registry.example.com:5000/a:1", Reference("registry.example.com:5000", "a", "1")),
        (f"registry.example.com/a@{SHA256}", Reference("registry.example.com", "a", "", SHA256)),
        (f"registry.example.com/a:1@{SHA256}", Reference("registry.example.com", "a", "1", SHA256)),
        ("Registry.Example.com/a:1", Reference("registry.example.com", "a", "1")),
        ("10.1.2.3:5000/a:1", Reference("10.1.2.3:5000", "a", "1")),
    ],
)
def test_a_whole_reference_is_understood(text: str, found: Reference) -> None:
    assert parse(text) == found
    assert parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Begin with the registry"),
        ("ubuntu", "Begin with the registry"),
        ("ubuntu:24.04", "Begin with the registry"),
        ("team/image:1", "Begin with the registry"),
        ("https://registry.example.com/a:1", "Leave out the scheme"),
        ("registry.example.com/a", "Say which version"),
        ("registry.example.com/a:", "A tag has"),
        ("registry.example.com/a:-1", "A tag has"),
        ("registry.example.com/a:" + "x" * 129, "A tag has"),
        ("registry.example.com/a@sha256:abc", "A digest is"),
        ("registry.example.com/a@md5:abc", "A digest is"),
        ("registry.example.com/a@sha512:" + "a1" * 64, "A digest is sha256"),
        ("registry.example.com/a@", "A digest is"),
        ("registry.example.com/A:1", "no capital letters"),
        ("registry.example.com/a//b:1", "the image's name"),
        ("registry.example.com/:1", "the image's name"),
        ("registry.example.com/../a:1", "the image's name"),
        ("registry.example.com/a b:1", "the image's name"),
        ("registry.example.com/a:1\n", "A tag has"),
        ("registry.example.com/a:1 --privileged", "A tag has"),
        ("-registry.example.com/a:1", "A registry is a host"),
        ("registry.example.com:0/a:1", "A registry is a host"),
        ("registry.example.com:70000/a:1", "A registry is a host"),
        ("regístry.example.com/a:1", "A registry is a host"),
        ("registry.example.com/" + "a" * 300 + ":1", "the image's name"),
        ("registry.example.com/" + "a" * 600 + ":1", "at most 500"),
    ],
)
def test_what_is_no_reference_is_refused_with_what_to_change(text: str, words: str) -> None:
    with pytest.raises(BadImage, match=words):
        parse(text)


@given(st.text(max_size=40))
def test_no_text_is_taken_for_an_image_that_a_command_line_would_misread(text: str) -> None:
    try:
        found = str(parse(f"registry.example.com/{text}"))
    except BadImage:
        return
    assert found.startswith("registry.example.com/")
    assert found.isascii()
    assert not set(found) & set(" \t\n\"'$`;|&<>\\")


def test_a_registry_has_one_form() -> None:
    assert host_of_registry("Registry.Example.com:443") == "registry.example.com:443"
    for bad in ("", "registry/x", "a..b", "a_b.example", "user@registry.example.com", "registry.example.com:"):
        with pytest.raises(BadImage):
            host_of_registry(bad)
