"""Every byte that a command wrote arrives, in order, as whole characters."""

import base64
import os
import re
import signal

import pytest

from provisioning.agent.output import OutputFile, read_chunk, whole_characters
from tests.provisioning.agent.cast import eventually


def test_a_long_log_arrives_whole_in_bounded_pieces_before_gone_is_said(plane, home, start_agent):
    start_agent()
    talk = "for n in range(60000): print(n, 'Ω' * 20)"
    script = f"import time\n{talk}\nprint(end='', flush=True)\nopen('done', 'w')\ntime.sleep(600)"
    plane.want("asg_a", "running", command=["python3", "-c", script], env={"PYTHONUNBUFFERED": ""})
    eventually((home / "workloads" / "asg_a" / "work" / "done").exists)
    plane.want("asg_a", "gone")
    eventually(lambda: plane.view("asg_a")["state"] == "gone")
    assert plane.log("asg_a") == "".join(f"{number} {'Ω' * 20}\n" for number in range(60000))
    sizes = [len(base64.b64decode(chunk["data"])) for chunk in plane.chunks]
    assert max(sizes) <= 256 << 10
    for report in plane.reports:
        assert sum(len(base64.b64decode(chunk["data"])) for chunk in report["logs"]) <= 1 << 20
    for chunk in plane.chunks:
        base64.b64decode(chunk["data"]).decode()  # Each alone is whole characters.


def test_a_control_plane_that_lost_its_logs_gets_them_again(plane, start_agent):
    start_agent()
    plane.want("asg_a", "running", command=["sh", "-c", "echo first; sleep 600"])
    eventually(lambda: plane.log("asg_a") == "first\n")
    with plane.guard:
        plane.logs["asg_a"].clear()
    eventually(lambda: plane.log("asg_a") == "first\n")


def test_a_lost_answer_repeats_no_log(plane, start_agent):
    start_agent()
    plane.want("asg_a", "running", command=["sh", "-c", "for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done"])
    eventually(lambda: plane.logs.get("asg_a"))
    plane.lose_answers["/agent/v1/sync"] = 2
    eventually(lambda: plane.view("asg_a")["state"] == "exited")
    eventually(lambda: plane.log("asg_a") == "1\n2\n3\n4\n5\n6\n")


def test_several_logs_share_a_sync(plane, start_agent):
    start_agent()
    for name in "abcdef":
        plane.want(f"asg_{name}", "running", command=["sh", "-c", f"head -c 700000 /dev/zero | tr '\\0' {name}"])
    for name in "abcdef":
        eventually(lambda name=name: plane.log(f"asg_{name}") == name * 700_000)


def test_output_beyond_the_limit_is_dropped_with_a_notice_and_the_command_goes_on(tmp_path):
    output = OutputFile(tmp_path / "output", limit_bytes=10)
    for data in (b"12345", "678Ω€".encode(), b"never kept"):
        output.write(data)
    text = (tmp_path / "output").read_text()
    assert text == "12345678Ω\n[gpumarket] The output reached its limit of 10 bytes; the rest is not kept.\n"


def test_a_command_that_writes_beyond_the_limit_is_not_held_up(node, monkeypatch):
    monkeypatch.setattr("provisioning.agent.workload.OUTPUT_LIMIT_BYTES", 1000)
    node.run("asg_a", "head -c 5000000 /dev/zero | tr '\\0' x; exit 3")
    assert node.until("asg_a", "exited").exit_code == 3
    assert re.fullmatch(r"x{1000}\n\[gpumarket\] The output reached .*\n", node.output("asg_a"))


def test_what_a_command_said_last_is_kept_however_late_the_supervisor_reads_it(node):
    say = "import fcntl,os; fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20); os.write(1, b'x' * 500_000)"
    node.run("asg_a", f'kill -STOP $PPID; python3 -c "{say}"; touch done')
    eventually((node.work("asg_a") / "done").exists)
    os.kill(node.shim_pid("asg_a"), signal.SIGCONT)
    node.until("asg_a", "exited")
    assert node.output("asg_a") == "x" * 500_000


def test_a_full_disk_does_not_stop_the_command(tmp_path):
    (tmp_path / "output").symlink_to("/dev/full")
    output = OutputFile(tmp_path / "output", limit_bytes=1000)
    output.write(b"lost")
    output.write(b"lost too")


@pytest.mark.parametrize("text", ["plain", "Ω", "€€", "😀", "a😀", "😀Ω€"])
def test_a_cut_character_waits_for_its_end(text):
    data = text.encode()
    for length in range(len(data) + 1):
        kept = whole_characters(data[:length])
        assert text.startswith(kept.decode())
        assert length - len(kept) < 4
    assert whole_characters(data) == data


@pytest.mark.parametrize("data", [b"\xff", b"a\x80\x80\x80\x80\x80", b"\xc3("])
def test_bytes_that_are_no_text_do_not_block_a_log(data):
    assert whole_characters(data) == data


def test_the_last_chunk_of_a_final_log_may_end_in_half_a_character(tmp_path):
    path = tmp_path / "output"
    path.write_bytes(b"ab\xe2\x82")
    assert read_chunk(path, offset=0, limit_bytes=100, is_final=False) == b"ab"
    assert read_chunk(path, offset=0, limit_bytes=100, is_final=True) == b"ab\xe2\x82"
    assert read_chunk(path, offset=2, limit_bytes=100, is_final=True) == b"\xe2\x82"
    assert read_chunk(tmp_path / "absent", offset=0, limit_bytes=100, is_final=True) == b""


def test_random_pieces_put_together_are_the_file(tmp_path):
    path = tmp_path / "output"
    data = os.urandom(5000) + "Ω€😀".encode() * 500
    path.write_bytes(data)
    got = b""
    while piece := read_chunk(path, offset=len(got), limit_bytes=97, is_final=True):
        got += piece
    assert got == data
