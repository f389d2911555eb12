"""SSH and files in real containers, of an image without any sshd or sftp-server: busybox and nothing else."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.packages import needs
from tests.provisioning.agent.boxes import ImageStore, config_file
from tests.provisioning.agent.cast import eventually
from tests.provisioning.agent.ssh_clients import Door, a_door

pytestmark = [needs("podman"), needs("ssh")]


def a_box(folder: Path, images: ImageStore, *, image: str = "", script: str = "sleep 600") -> Any:
    """Have a container behind a gateway."""
    options = ("--runtime", "podman", "--podman-config", config_file(folder))
    return a_door(folder, *options, image=image or images.plain, command=["sh", "-c", script])


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, images: ImageStore) -> Iterator[Door]:
    """One container for the tests that leave it as it is."""
    with a_box(tmp_path_factory.mktemp("box"), images) as door:
        yield door


def test_a_command_runs_in_the_container_and_another_key_does_not_open_it(box: Door) -> None:
    done = box.ssh("pwd; echo $GPUMARKET_INSTANCE_ID; [ -e /etc/debian_version ] || echo contained; exit 7")
    assert done.returncode == 7, done.stderr
    assert done.stdout.decode().split() == ["/workspace", "ins_demo", "contained"]
    assert box.ssh("true", key=box.stranger).returncode == 255


def test_a_shell_has_a_terminal_in_the_container(box: Door) -> None:
    script = b"tty; stty size; echo $TERM; exit 5\n"
    done = box.ssh(options=("-tt",), stdin=script)
    assert b"/dev/pts/" in done.stdout
    assert done.returncode == 5


def test_bytes_pass_unchanged_through_a_container(box: Door) -> None:
    data = os.urandom(1 << 20)
    assert box.ssh("cat", stdin=data).stdout == data


def test_a_big_file_keeps_its_digest_both_ways_in_a_container(box: Door, tmp_path: Path) -> None:
    here, back = tmp_path / "big", tmp_path / "back"
    here.write_bytes(os.urandom(64 << 20))
    digest = hashlib.sha256(here.read_bytes()).hexdigest()
    assert box.copy(str(here), "there:big").returncode == 0
    assert box.ssh("sha256sum big; pwd").stdout.decode().split()[0] == digest
    assert box.copy("there:/workspace/big", str(back)).returncode == 0
    assert hashlib.sha256(back.read_bytes()).hexdigest() == digest


def test_no_link_leads_out_of_a_container(box: Door, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for target in (tmp_path / "secret", "../../../../../.." + str(tmp_path / "secret"), "/proc/1/root" + str(tmp_path)):
        box.ssh(f"ln -sfn {target} /workspace/link")
        assert box.copy("there:link", str(tmp_path / "got")).returncode != 0
    assert box.ssh("cd /proc/self/root && ln -sfn $PWD/etc /workspace/link").returncode == 0
    assert box.copy("there:link/shadow", str(tmp_path / "got")).returncode != 0
    assert not (tmp_path / "got").exists()
    listed = box.sftp("ls -1 /").stdout.decode().split()
    assert "workspace" in " ".join(listed)
    assert "home" not in listed


def test_the_helper_has_no_powers_but_those_over_files(box: Door) -> None:
    words = ["sftp", *box.options(), "-P", str(box.access["ssh_port"]), "ins_demo@127.0.0.1"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:

        def helper() -> dict[str, str] | None:
            for process in Path("/proc").iterdir():
                try:
                    words = (process / "cmdline").read_bytes().split(b"\0")
                    if b"container" in words and b"provisioning.agent.sftp" in words:
                        lines = (process / "status").read_text().splitlines()
                        facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
                        if facts["NoNewPrivs"] == "1":
                            return facts
                except OSError:
                    continue
            return None

        facts = eventually(helper)
        assert int(facts["CapEff"], 16) | 0b11011 == 0b11011
        assert int(facts["CapBnd"], 16) | 0b11011 == 0b11011
        client.communicate(b"bye\n", timeout=10)


def test_a_container_of_another_user_keeps_that_user_and_its_ports_are_reached(
    tmp_path: Path, images: ImageStore
) -> None:
    (tmp_path / "note").write_text("hello")
    script = "while :; do echo from inside | nc -l -p 8080; done"
    with a_box(tmp_path, images, image=images.image("guest", "USER guest"), script=script) as door:
        assert door.copy(str(tmp_path / "note"), "there:/dev/shm/note").returncode == 0
        owner = door.ssh("id -u; stat -c %u /dev/shm/note").stdout.decode().split()
        assert owner == ["1000", "1000"]
        assert door.copy(str(tmp_path / "note"), "there:/etc/note").returncode != 0
        eventually(lambda: door.ssh(options=("-W", "localhost:8080")).stdout == b"from inside\n")


def test_what_a_client_left_running_in_front_is_hung_up_in_the_container_too(box: Door) -> None:
    client = subprocess.Popen(box.command("echo up; exec sleep 4242"), stdout=subprocess.PIPE)
    assert client.stdout is not None
    client.stdout.readline()
    client.kill()
    client.communicate()
    eventually(lambda: b"sleep 4242" not in box.ssh("ps").stdout)


def test_a_signal_reaches_the_command_in_the_container_and_not_only_its_client(box: Door) -> None:
    async def talk() -> None:
        async with await box.connect() as connection:
            script = "trap 'echo got it; exit 9' USR1; echo ready; while :; do sleep 0.05; done"
            process = await connection.create_process(script)
            assert await process.stdout.readline() == "ready\n"
            process.send_signal("USR1")
            done = await process.wait()
            assert (done.stdout, done.exit_status) == ("got it\n", 9)

    asyncio.run(asyncio.wait_for(talk(), 20))


def test_a_removed_key_ends_its_shell_in_the_container(box: Door) -> None:
    client = subprocess.Popen(
        box.command("echo up; exec sleep 4343", options=("-tt",)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert client.stdout is not None
    assert client.stdout.readline().strip() == b"up"
    box.plane.want("asg_a", "running", ssh_keys=[box.stranger.public])
    said, _ = client.communicate(timeout=10)
    assert b"this key was removed from the project" in said
    eventually(lambda: b"sleep 4343" not in box.ssh("ps", key=box.stranger).stdout)
    box.run()


def test_the_end_of_a_container_ends_its_sessions(tmp_path: Path, images: ImageStore) -> None:
    with a_box(tmp_path, images) as box:
        client = subprocess.Popen(
            box.command("echo up; exec sleep 600"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert client.stdout is not None
        client.stdout.readline()
        box.stop()
        _, said = client.communicate(timeout=15)
    assert b"does not run here any more" in said
    assert client.returncode == 255
