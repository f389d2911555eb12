"""`gpumarket ssh-key`: public halves go out, private ones never."""

import pytest

from marketplace.cli import ssh_keys
from tests.marketplace.cli.test_help import REFERENCE

PUBLIC = "ssh-ed25519 AAAAC3Nz dora@laptop"


@pytest.fixture
def public(tmp_path):
    file = tmp_path / "id_ed25519.pub"
    file.write_text(PUBLIC + "\n")
    return file


def test_a_key_is_added_under_the_comment_in_its_file(gpumarket, shop, public):
    said = gpumarket("ssh-key", "add", str(public), "--project", "serving")
    assert (said.code, said.out) == (0, "key_2\n")
    assert "dora@laptop (SHA256:2) opens the project's instances" in said.err
    assert shop.keys[1]["public_key"] == PUBLIC
    assert shop.keys[1]["project"] == "prj_2"
    assert shop.asked("POST", "/api/v1/ssh-keys")[0]["headers"]["Idempotency-Key"]
    assert "dora@laptop" in gpumarket("ssh-key", "ls").out


def test_a_key_without_a_comment_has_the_name_of_its_file_or_the_one_given(gpumarket, shop, public):
    public.write_text("ssh-ed25519 AAAAC3Nz")
    gpumarket("ssh-key", "add", str(public))
    gpumarket("ssh-key", "add", str(public), "--name", "desk")
    assert [row["name"] for row in shop.keys] == ["laptop", "id_ed25519", "desk"]


def test_a_private_key_is_not_sent(gpumarket, shop, tmp_path):
    file = tmp_path / "id_ed25519"
    file.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n")
    said = gpumarket("ssh-key", "add", str(file))
    assert said.code == 2
    assert f"Give the public half: {file}.pub" in said.err
    assert not shop.asked("POST", "/api/v1/ssh-keys")


@pytest.mark.parametrize(
    "text", ["PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\nsecret\n", "hello\n", "", f"{PUBLIC}\n{PUBLIC}\n"]
)
def test_what_is_not_one_public_key_is_not_sent(gpumarket, shop, public, text):
    public.write_text(text)
    said = gpumarket("ssh-key", "add", str(public))
    assert said.code == 2
    assert "does not hold one OpenSSH public key; it was not sent" in said.err
    assert not shop.asked("POST", "/api/v1/ssh-keys")


def test_a_file_that_is_not_there_is_told(gpumarket, tmp_path):
    said = gpumarket("ssh-key", "add", str(tmp_path / "none.pub"))
    assert said.code == 2
    assert "cannot be read" in said.err


@pytest.mark.parametrize("named", ["laptop", "key_1", "SHA256:1"])
def test_a_key_is_removed_by_its_name_id_or_fingerprint(gpumarket, shop, named):
    assert gpumarket("ssh-key", "rm", named, "--json").json["id"] == "key_1"
    assert shop.keys == []
    assert "nobody can enter" in gpumarket("ssh-key", "ls").err


def test_a_name_that_two_keys_have_or_none_removes_nothing(gpumarket, shop, public):
    gpumarket("ssh-key", "add", str(public), "--name", "laptop")
    assert gpumarket("ssh-key", "rm", "laptop").code == 5
    assert gpumarket("ssh-key", "rm", "desk").code == 4
    assert len(shop.keys) == 2


@pytest.mark.parametrize("command", ["ls", "add", "rm"])
def test_every_command_stands_in_the_reference(command):
    assert command in {found.name for found in ssh_keys.app.registered_commands}
    assert f"gpumarket ssh-key {command}" in REFERENCE.read_text()
