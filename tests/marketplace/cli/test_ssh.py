"""`ssh`, `cp` and `ports`: what OpenSSH is told, what is refused, and a real way into a real process."""

import json
from pathlib import Path

import pytest

from marketplace.cli import doors
from tests.marketplace.cli.shop import make_door
from tests.packages import needs
from tests.provisioning.agent.conftest import own_door  # noqa: F401  a fixture

OPENSSH = needs("ssh")


@pytest.fixture
def renter(gpumarket, shop):
    """Has one instance that runs until somebody ends it."""
    shop.runs_on = True
    gpumarket("launch", "--name", "box", "--", "sleep", "600")
    return gpumarket


@pytest.fixture
def handed_over(monkeypatch):
    """What we became, instead of becoming it."""
    became = []
    monkeypatch.setattr(doors.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doors.os, "execv", lambda path, argv: became.append(argv))
    return became


def test_ssh_is_told_where_as_whom_and_which_host_key(renter, handed_over, empty_home):
    assert renter("ssh", "box", "-L", "8888", "-L", "9000:80", "--", "nvidia-smi", "-L").code == 0
    (argv,) = handed_over
    assert argv[0] == "ssh"
    assert "-oStrictHostKeyChecking=yes" in argv
    known = next(word for word in argv if word.startswith("-oUserKnownHostsFile=")).partition("=")[2]
    assert Path(known).read_text() == "ins_1 ssh-ed25519 AAAA\n"
    words = "-p 2222 -L 127.0.0.1:8888:localhost:8888 -L 127.0.0.1:9000:localhost:80 ins_1@node1.example"
    assert " ".join(argv).endswith(f"{words} nvidia-smi -L")


def test_one_word_is_a_line_for_the_shell_and_several_are_one_program(renter, handed_over):
    renter("ssh", "box", "--", "cd x && ls")
    renter("ssh", "box", "--", "printf", "%s", "a b")
    renter("ssh", "box", "-t", "--identity", "key")
    assert [argv[-1] for argv in handed_over] == ["cd x && ls", "printf %s 'a b'", "ins_1@node1.example"]
    assert {"-t", "-i", "-oIdentitiesOnly=yes"} <= set(handed_over[2])


@pytest.mark.parametrize("port", ["x", "0", "70000", "1:2:3", "-1"])
def test_what_is_no_port_is_refused(renter, port):
    assert renter("ssh", "box", f"--forward={port}").code == 2


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (("a.tar", "box:data/"), "-- a.tar ins_1@node1.example:data/"),
        (("box:model.pt", "."), "-- ins_1@node1.example:model.pt ."),
        (("-r", "odd:name/x", "box:"), "-r"),
        (("-r", "./odd:name", "box:"), "-r -q -- ./odd:name ins_1@node1.example:"),
    ],
)
def test_cp_is_scp_with_one_side_in_the_instance(renter, handed_over, words, end):
    said = renter("cp", *words)
    if words[1] == "odd:name/x":
        assert said.code == 2
        return
    assert " ".join(handed_over[0]).endswith(end)
    assert handed_over[0][0] == "scp"


@pytest.mark.parametrize("words", [("a", "b"), ("box:a", "box:b"), ("C:\\a", "b")])
def test_cp_needs_exactly_one_side_in_an_instance(renter, words):
    said = renter("cp", *words)
    assert said.code == 2
    assert "One side is a file here" in said.err


def test_with_json_nothing_is_run_and_the_words_are_shown(renter, handed_over, shop):
    said = renter("ssh", "box", "--json", "--", "true")
    assert said.json | {"argv": 0} == shop.door | {"argv": 0}
    assert said.json["argv"][-2:] == ["ins_1@node1.example", "true"]
    assert renter("cp", "a", "box:", "--json").json["argv"][0] == "scp"
    assert handed_over == []


def test_an_instance_that_does_not_run_is_said_to_be_so(gpumarket, shop):
    shop.stays_in = "queued"
    gpumarket("launch", "--name", "box", "--no-wait", "--", "true")
    for words in (("ssh", "box"), ("cp", "a", "box:"), ("ports", "box")):
        said = gpumarket(*words)
        assert said.code == 5
        assert "box is queued; only what runs can be entered." in said.err


def test_a_node_without_a_gateway_and_a_project_without_a_key_are_said_to_be_so(renter, shop):
    shop.keys = []
    said = renter("ssh", "box")
    assert said.code == 5
    assert "The project research has no SSH key" in said.err
    assert "gpumarket ssh-key add" in said.err
    shop.door = make_door(ssh_port=None)
    said = renter("ssh", "box")
    assert said.code == 5
    assert "lets nobody in by SSH" in said.err


def test_a_replica_that_is_not_there_and_a_missing_program_are_said_to_be_so(renter, monkeypatch):
    said = renter("ssh", "box", "--replica", "3")
    assert said.code == 4
    assert "no replica 3" in said.err
    monkeypatch.setattr(doors.shutil, "which", lambda name: None)
    said = renter("ssh", "box")
    assert said.code == 1
    assert "apt-get install openssh-client" in said.err


def test_ports_shows_what_is_published_and_the_way_to_any_other(renter, shop):
    said = renter("ports", "box")
    assert said.code == 0
    assert "node1.example:31001" in said.out
    assert "ssh -N -L 8888:localhost:8888 -p 2222 ins_1@node1.example" in said.err
    assert renter("ports", "box", "--json").json["data"] == [shop.door]
    shop.door = make_door(ports=[], ssh_port=None)
    assert "box publishes no port." in renter("ports", "box").err


@OPENSSH
def test_a_shell_a_command_and_files_of_a_real_instance(renter, shop, process, own_door, tmp_path):  # noqa: F811
    access = own_door.access
    shop.door = make_door(user="ins_demo", ports=[], **access)
    key = str(own_door.key.file)
    done = process("ssh", "box", "-i", key, "--", "echo $GPUMARKET_INSTANCE_ID; exit 7")
    assert done.communicate(timeout=20)[0] == "ins_demo\n"
    assert done.returncode == 7
    (tmp_path / "data").write_text("hello")
    assert process("cp", "-i", key, str(tmp_path / "data"), "box:there").wait(20) == 0
    assert (own_door.work / "there").read_text() == "hello"
    assert process("cp", "-i", key, "box:there", str(tmp_path / "back")).wait(20) == 0
    assert (tmp_path / "back").read_text() == "hello"
    other = json.loads(json.dumps(access)) | {"host_key": own_door.stranger.public}
    shop.door = make_door(user="ins_demo", ports=[], **other)
    imposter = process("ssh", "box", "-i", key, "--", "true")
    assert "Host key verification failed" in imposter.communicate(timeout=20)[1]
