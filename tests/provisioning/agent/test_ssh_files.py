"""Files by scp and sftp: both ways, whole, fast, and never out of the place they belong to."""

import asyncio
import hashlib
import os
import time
from pathlib import Path

import asyncssh
import pytest

from tests.packages import needs
from tests.provisioning.agent.ssh_clients import Door

pytestmark = needs("ssh")

BIG = 64 << 20


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_big_file_keeps_its_digest_both_ways(door: Door, tmp_path: Path) -> None:
    here, back = tmp_path / "big", tmp_path / "back"
    here.write_bytes(os.urandom(BIG))
    began = time.monotonic()
    assert door.copy(str(here), "there:big").returncode == 0
    up = time.monotonic()
    assert door.copy("there:big", str(back)).returncode == 0
    down = time.monotonic()
    assert digest(here) == digest(door.work / "big") == digest(back)
    print(f"\n64 MiB up {up - began:.2f} s, down {down - up:.2f} s")


def test_a_folder_goes_there_and_back_with_times_and_modes(door: Door, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "deep" / "er" / "naïve 名").write_text("text")
    (tree / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tree / "run.sh").chmod(0o755)
    os.utime(tree / "run.sh", (1_000_000, 2_000_000))
    assert door.copy(str(tree), "there:", "-r", "-p").returncode == 0
    assert door.ssh("./tree/run.sh").stdout == b"ran\n"
    assert (door.work / "tree" / "run.sh").stat().st_mtime == 2_000_000
    assert door.copy("there:tree", str(tmp_path / "back"), "-r", "-p").returncode == 0
    assert (tmp_path / "back" / "deep" / "er" / "naïve 名").read_text() == "text"
    assert (tmp_path / "back" / "run.sh").stat().st_mode & 0o777 == 0o755


def test_sftp_does_what_people_do_with_it(door: Door, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("hello")
    done = door.sftp(
        f"put {tmp_path}/note note", "mkdir sub", "rename note sub/other", "ln sub/other hard", "symlink hard soft",
        "chmod 600 hard", "ls -l", "pwd", f"get soft {tmp_path}/got", "rm hard", "rm soft", "rm sub/other", "rmdir sub",
        "df",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "got").read_text() == "hello"
    assert b"-rw-------" in done.stdout
    assert b"Remote working directory: /\n" in done.stdout
    assert {"note", "sub", "hard", "soft"}.isdisjoint(os.listdir(door.work))


def test_no_link_and_no_dots_lead_out(door: Door, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (door.work / "absolute").symlink_to(tmp_path / "secret")
    (door.work / "relative").symlink_to(Path("..", "..", "..", "..", "secret"))
    (door.work / "up").symlink_to("../../..")
    names = ("absolute", "relative", "up/secret", "../../../secret", str(tmp_path / "secret"), "/etc/passwd")
    for name in names:
        assert door.copy(f"there:{name}", str(tmp_path / "got")).returncode != 0
    assert not (tmp_path / "got").exists()
    for name in names:
        door.copy(str(tmp_path / "key"), f"there:{name}")
        assert (tmp_path / "secret").read_text() == "secret"
    assert Path("/etc/passwd").read_text().startswith("root:")


def test_volumes_of_a_process_are_reached_at_their_paths_and_lead_nowhere_else(door: Door, tmp_path: Path) -> None:
    volumes = door.home / "volumes"
    for name in ("vol_a", "vol_of_a_stranger"):
        (volumes / name).mkdir(parents=True)
        (volumes / name / "note").write_text(name)
    (tmp_path / "secret").write_text("secret")
    (volumes / "vol_a" / "absolute").symlink_to(tmp_path / "secret")
    (volumes / "vol_a" / "up").symlink_to("../../../../..")
    (volumes / "vol_a" / "beside").symlink_to("../vol_of_a_stranger/note")
    mount = {"id": "vol_a", "path": "/mnt/deep/data", "name": "data"}
    door.run("asg_b", instance="ins_other", name="other", volumes=[mount])
    work = door.home / "workloads" / "asg_b" / "work"
    (work / "doors").symlink_to(".volumes")
    (tmp_path / "put").write_text("put")
    done = door.sftp("get /mnt/deep/data/note " + str(tmp_path / "got"), f"put {tmp_path}/put mnt/deep/data/new",
                     "ls /mnt/deep/data", "pwd", user="ins_other")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "got").read_text() == "vol_a"
    assert (volumes / "vol_a" / "new").read_text() == "put"
    assert b"Remote working directory: /\n" in done.stdout
    # The process itself finds the same.
    assert door.ssh("cat mnt/deep/data/new", user="ins_other").stdout == b"put"
    for way in ("absolute", "up/secret", "beside", "../../../../secret", "../vol_of_a_stranger/note"):
        for place in ("mnt/deep/data", "doors/vol_a", ".volumes/vol_a"):
            assert door.sftp(f"get {place}/{way} {tmp_path}/stolen", user="ins_other").returncode != 0, (place, way)
    assert door.sftp("get doors/vol_of_a_stranger/note " + str(tmp_path / "stolen"), user="ins_other").returncode != 0
    assert not (tmp_path / "stolen").exists()
    # What is mounted is there for the server alone.
    assert (work / ".volumes" / "vol_a").is_symlink()
    assert str(work) not in Path("/proc/self/mounts").read_text()


def test_other_files_are_served_where_a_volume_or_the_place_for_volumes_is_gone(door: Door, tmp_path: Path) -> None:
    volumes = door.home / "volumes"
    for name in ("vol_d", "vol_e"):
        (volumes / name).mkdir(parents=True)
        (volumes / name / "note").write_text(name)
    mounts = [{"id": f"vol_{name}", "path": f"/{name}", "name": name} for name in ("d", "e")]
    door.run("asg_d", instance="ins_fourth", name="fourth", volumes=mounts)
    work = door.home / "workloads" / "asg_d" / "work"
    (work / "own").write_text("own")
    (volumes / "vol_e").rename(volumes / "vol_f")
    done = door.sftp(f"get own {tmp_path}/own", f"get d/note {tmp_path}/note", user="ins_fourth")
    assert (done.returncode, (tmp_path / "own").read_text(), (tmp_path / "note").read_text()) == (0, "own", "vol_d")
    assert door.sftp(f"put {tmp_path}/own .volumes/own", user="ins_fourth").returncode != 0
    (tmp_path / "own").unlink()
    for door_of in (work / ".volumes").iterdir():
        door_of.unlink()
    (work / ".volumes").rmdir()
    assert door.sftp(f"get own {tmp_path}/own", user="ins_fourth").returncode == 0
    assert (tmp_path / "own").read_text() == "own"
    assert door.sftp(f"get d/note {tmp_path}/stolen", user="ins_fourth").returncode != 0


def test_a_place_for_volumes_that_was_turned_elsewhere_shows_nothing_of_elsewhere(door: Door, tmp_path: Path) -> None:
    (door.home / "volumes" / "vol_c").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("secret")
    mount = {"id": "vol_c", "path": "/data", "name": "data"}
    door.run("asg_c", instance="ins_third", name="third", volumes=[mount])
    work = door.home / "workloads" / "asg_c" / "work"
    (work / ".volumes").rename(work / ".old")
    (work / ".volumes").symlink_to(tmp_path / "elsewhere")
    assert door.sftp(f"get .volumes/secret {tmp_path}/stolen", user="ins_third").returncode != 0
    assert not (tmp_path / "stolen").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == [tmp_path / "elsewhere" / "secret"]


def test_what_is_no_file_is_not_opened_and_holds_nothing_up(door: Door, tmp_path: Path) -> None:
    os.mkfifo(door.work / "pipe")
    assert door.copy("there:pipe", str(tmp_path / "got")).returncode != 0


def test_renaming_does_not_overwrite_and_handles_are_limited(door: Door) -> None:
    async def talk() -> None:
        async with await door.connect() as connection, connection.start_sftp_client() as files:
            for name in ("a", "b"):
                async with files.open(name, "w") as file:
                    await file.write(name)
            with pytest.raises(asyncssh.SFTPFailure):
                await files.rename("a", "b")
            await files.posix_rename("a", "b")
            assert (door.work / "b").read_text() == "a"
            opened = [await files.open("b") for _ in range(256)]
            with pytest.raises(asyncssh.SFTPFailure):
                await files.open("b")
            for file in opened:
                await file.close()
            with pytest.raises(asyncssh.SFTPNoSuchFile):
                await files.stat("none")
            await files.truncate("b", 0)
            assert await files.getsize("b") == 0

    asyncio.run(asyncio.wait_for(talk(), 20))


def test_garbage_ends_the_transfer_and_nothing_else(door: Door) -> None:
    async def talk() -> None:
        async with await door.connect() as connection:
            process = await connection.create_process(subsystem="sftp", encoding=None)
            process.stdin.write(b"\xff" * 5000)
            await asyncio.wait_for(process.wait(), 10)
            process = await connection.create_process(subsystem="sftp", encoding=None)
            process.stdin.write(
                b"\0\0\0\x05\x01\0\0\0\x03" + b"\0\0\0\x07\x03\0\0\0\x01\0\0" + b"\0\0\0\x05\xc9\0\0\0\x02"
            )
            answers = await process.stdout.readexactly(4)
            assert int.from_bytes(answers) > 4
            process.stdin.write_eof()
            done = await process.wait()
            assert done.exit_status == 0
        assert door.ssh("true").returncode == 0

    asyncio.run(asyncio.wait_for(talk(), 20))
