"""The SSH gateway with OpenSSH's own client: who gets in, what is there, and when it ends."""

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncssh
import pytest

from provisioning.agent.ssh_connections import CHANNELS_MAX, FORWARDS_MAX, SESSIONS_MAX, Connection
from provisioning.agent.ssh_places import Places
from provisioning.agent.ssh_sessions import Session
from tests.packages import needs
from tests.provisioning.agent.cast import AgentRun, eventually, is_running
from tests.provisioning.agent.ssh_clients import GATEWAY, Door, a_door, make_key

pytestmark = needs("ssh")

BIG = 64 << 20


def test_a_key_of_the_project_runs_a_command_in_the_instances_folder_and_environment(door: Door) -> None:
    done = door.ssh("pwd; echo $GPUMARKET_INSTANCE_ID $CUDA_DEVICE_ORDER; command -v python3 >/dev/null && echo python")
    assert done.stdout.decode().split() == [str(door.work), "ins_demo", "PCI_BUS_ID", "python"]
    assert done.returncode == 0


@pytest.mark.parametrize("user", ["ins_demo", "quiet-otter", "quiet-otter.0", "ins_demo.0"])
def test_the_user_name_is_the_instances_name_or_id(door: Door, user: str) -> None:
    assert door.ssh("echo hello", user=user).stdout == b"hello\n"


def test_another_key_another_user_name_and_a_password_are_refused_alike(own_door: Door) -> None:
    own_door.run("asg_b", instance="ins_other", name="other", ssh_keys=[own_door.stranger.public])
    own_door.plane.want("asg_c", "prepared", instance="ins_ready", name="ready", ssh_keys=[own_door.key.public])
    eventually(lambda: own_door.plane.view("asg_c")["state"] == "prepared")
    refusals = [
        own_door.ssh("true", key=own_door.stranger),
        own_door.ssh("true", user="nobody"),
        own_door.ssh("true", user="root"),
        own_door.ssh("true", user="ins_other"),
        own_door.ssh("true", user="quiet-otter.1"),
        own_door.ssh("true", user="ready"),
        own_door.ssh("true", options=("-oPubkeyAuthentication=no",)),
    ]
    said = {refusal.stderr.decode().split(": ", 1)[1] for refusal in refusals}
    assert said == {"Permission denied (publickey).\r\n"}
    assert {refusal.returncode for refusal in refusals} == {255}


def test_of_two_tenants_with_one_name_the_key_decides(own_door: Door) -> None:
    own_door.run("asg_b", instance="ins_other", name="quiet-otter", ssh_keys=[own_door.stranger.public])
    shown = [
        own_door.ssh("echo $GPUMARKET_INSTANCE_ID", user="quiet-otter", key=key)
        for key in (own_door.key, own_door.stranger)
    ]
    assert [one.stdout for one in shown] == [b"ins_demo\n", b"ins_other\n"]
    both = [own_door.stranger.public, own_door.key.public]
    own_door.run("asg_b", instance="ins_other", name="quiet-otter", ssh_keys=both)
    eventually(lambda: own_door.ssh("true", user="quiet-otter").returncode == 255)  # Which one is meant?
    assert own_door.ssh("true", user="ins_other").returncode == 0


def test_the_exit_code_and_both_outputs_come_back(door: Door) -> None:
    done = door.ssh("echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert door.ssh("no-such-program").returncode == 127


def test_bytes_pass_unchanged_and_the_end_of_the_input_is_told(door: Door) -> None:
    data = os.urandom(3 << 20)
    assert door.ssh("cat", stdin=data).stdout == data
    assert door.ssh("wc -c", stdin=data).stdout.strip() == str(len(data)).encode()


def test_input_that_nobody_reads_does_not_hold_the_session_up(door: Door) -> None:
    assert door.ssh("exec true", stdin=bytes(8 << 20)).returncode == 0


def test_a_slow_reader_makes_the_command_wait(door: Door) -> None:
    script = "head -c 67108864 /dev/zero; touch written"
    with subprocess.Popen(door.command(script), stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        client.stdout.read(1)
        time.sleep(1)
        assert not (door.work / "written").exists()
        assert len(client.stdout.read()) == BIG - 1
    assert (door.work / "written").exists()


def test_a_shell_has_a_terminal_of_the_asked_size_and_follows_it(door: Door) -> None:
    async def talk() -> None:
        async with await door.connect() as connection:
            process = await connection.create_process(term_type="xterm-256color", term_size=(101, 37))
            process.stdin.write("stty size; echo $TERM; tty\n")
            await process.stdout.readuntil("37 101")
            await process.stdout.readuntil("xterm-256color")
            await process.stdout.readuntil("/dev/pts/")
            process.change_terminal_size(120, 50)
            process.stdin.write("stty size\n")
            await process.stdout.readuntil("50 120")
            process.stdin.write("sleep 600\n")
            await asyncio.sleep(0.3)
            process.stdin.write("\x03")  # The terminal makes a signal of it.
            process.stdin.write("exit $((40+2))\n")
            done = await process.wait()
            assert done.exit_status == 42

    asyncio.run(asyncio.wait_for(talk(), 20))


def test_signals_reach_the_command_and_its_death_by_one_is_told(door: Door) -> None:
    async def talk() -> None:
        async with await door.connect() as connection:
            process = await connection.create_process("exec sleep 600")
            await asyncio.sleep(0.5)
            process.send_signal("TERM")
            done = await process.wait()
            assert done.exit_signal[0] == "TERM"

    asyncio.run(asyncio.wait_for(talk(), 20))


def test_only_the_language_of_the_clients_variables_comes_along(door: Door) -> None:
    async def talk() -> Any:
        env = {"LANG": "C", "LC_TIME": "C", "LD_PRELOAD": "/tmp/evil.so", "PATH": "/tmp", "GPUMARKET_MARK": "mine"}
        async with await door.connect(env=env) as connection:
            return await connection.run("echo $LANG $LC_TIME ${LD_PRELOAD:-none} $PATH $GPUMARKET_MARK")

    words = asyncio.run(talk()).stdout.split()
    assert words[:3] == ["C", "C", "none"]
    assert words[3] != "/tmp"
    assert words[4] != "mine"


def test_a_port_of_the_instance_is_forwarded_and_no_other(door: Door) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(peer.recv(100).upper())

        threading.Thread(target=answer, daemon=True).start()
        done = door.ssh(options=("-W", f"localhost:{port}"), stdin=b"hello")
    assert done.stdout == b"HELLO"

    async def ask_for_others() -> None:
        async with await door.connect() as connection:
            for host in ("192.0.2.1", "example.org", "0.0.0.0", "ins_other"):
                with pytest.raises(asyncssh.ChannelOpenError) as refused:
                    await connection.open_connection(host, 80)
                assert refused.value.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED

    asyncio.run(asyncio.wait_for(ask_for_others(), 20))
    eventually(lambda: [one for one in door.sessions("opened") if one["kind"] == "forward"])


def test_nothing_else_is_forwarded(door: Door) -> None:
    async def talk() -> None:
        async with await door.connect() as connection:
            with pytest.raises(asyncssh.ChannelListenError):
                await connection.forward_remote_port("", 0, "127.0.0.1", 1)
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.open_unix_connection(str(door.home / "lock"))
            with pytest.raises(asyncssh.ChannelListenError):
                await connection.forward_remote_path(str(door.home / "socket"), "/tmp/none")
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.create_process(subsystem="netconf")
            done = await connection.run("echo ${SSH_AUTH_SOCK:-none} ${DISPLAY:-none}")
            assert done.stdout.split() == ["none", "none"]

    asyncio.run(asyncio.wait_for(talk(), 20))


@pytest.mark.parametrize("tty", [False, True])
def test_a_removed_key_ends_its_open_sessions_and_opens_no_new_one(own_door: Door, *, tty: bool) -> None:
    client = subprocess.Popen(
        own_door.command("echo here; sleep 600", options=("-tt",) if tty else ()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert client.stdout is not None
    assert client.stdout.readline().strip() == b"here"
    own_door.plane.want("asg_a", "running", ssh_keys=[own_door.stranger.public])
    said, _ = client.communicate(timeout=10)
    assert b"this key was removed from the project" in said
    assert client.returncode == 255
    assert own_door.ssh("true").returncode == 255
    assert own_door.ssh("true", key=own_door.stranger).returncode == 0
    assert own_door.plane.view("asg_a")["state"] == "running"


def test_when_the_instance_ends_its_sessions_end_with_a_line(own_door: Door) -> None:
    client = subprocess.Popen(
        own_door.command("echo $$; exec sleep 600"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    own_door.plane.want("asg_a", "gone")
    _, said = client.communicate(timeout=10)
    assert b"gpumarket: quiet-otter does not run here any more" in said
    eventually(lambda: not is_running(pid))
    eventually(lambda: own_door.plane.view("asg_a")["state"] == "gone")


def test_a_client_that_hangs_up_takes_its_command_along_but_not_what_ignores_that(own_door: Door) -> None:
    client = subprocess.Popen(
        own_door.command("nohup sleep 601 >/dev/null 2>&1 & sleep 0.3; echo $! $$; exec sleep 600"),
        stdout=subprocess.PIPE,
    )
    assert client.stdout is not None
    stays, goes = map(int, client.stdout.readline().split())
    client.kill()
    client.communicate()
    eventually(lambda: not is_running(goes))
    assert is_running(stays)
    own_door.plane.want("asg_a", "gone")
    eventually(lambda: not is_running(stays))  # It carries the workload's mark.


def test_the_host_key_and_the_port_stay_when_the_agent_is_killed_and_started_again(own_door: Door) -> None:
    before = own_door.access
    assert (own_door.home / "ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    client = subprocess.Popen(own_door.command("echo $$; exec sleep 600"), stdout=subprocess.PIPE)
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    own_door.agent.kill()
    client.communicate(timeout=10)
    eventually(lambda: not is_running(pid))
    own_door.agent = AgentRun(own_door.home, own_door.plane.url, *GATEWAY)
    eventually(lambda: own_door.plane.reports[-1]["agent_epoch"] == 2)
    assert own_door.access == before
    assert eventually(lambda: own_door.ssh("echo again").stdout) == b"again\n"


def test_an_agent_that_is_told_to_end_says_so_to_its_sessions(own_door: Door) -> None:
    client = subprocess.Popen(own_door.command("echo here; sleep 600"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert client.stdout is not None
    client.stdout.readline()
    own_door.agent.stop()
    _, said = client.communicate(timeout=10)
    assert b"the node's agent is stopping" in said
    assert client.returncode == 255


def test_sessions_and_refusals_are_told_with_key_and_peer(own_door: Door) -> None:
    own_door.ssh("true")
    own_door.ssh("true", key=own_door.stranger)
    eventually(lambda: own_door.sessions("refused") and own_door.sessions("closed"))
    opened, closed, refused = (own_door.sessions(action)[0] for action in ("opened", "closed", "refused"))
    assert opened | {"action": ""} == closed | {"action": ""}
    assert (opened["assignment"], opened["kind"], opened["fingerprint"]) == ("asg_a", "exec", own_door.key.fingerprint)
    assert (refused["assignment"], refused["fingerprint"]) == ("asg_a", own_door.stranger.fingerprint)
    assert opened["peer"] == refused["peer"] == "127.0.0.1"


def test_a_refusal_under_a_name_of_two_tenants_is_on_no_record_of_theirs() -> None:
    one = SimpleNamespace(id="asg_a", instance="ins_a", name="demo", replica=0)
    other = SimpleNamespace(id="asg_b", instance="ins_b", name="demo", replica=0)
    places = Places(document=lambda: SimpleNamespace(assignments=(one, other)), runtime=None)  # type: ignore
    assert [places.meant(user) for user in ("demo", "demo.0", "ins_b", "ins_a.0")] == ["", "", "asg_b", "asg_a"]


def test_a_peer_that_is_refused_again_and_again_fills_no_journal(own_door: Door) -> None:
    for _ in range(8):
        own_door.ssh("true", key=own_door.stranger)
    own_door.ssh("true")
    eventually(lambda: own_door.sessions("closed"))
    assert len(own_door.sessions("refused")) == 5


def test_who_tries_many_keys_is_hung_up_on(door: Door, tmp_path: Path) -> None:
    keys = [make_key(tmp_path, f"key-{number}") for number in range(9)]
    more = [word for key in keys for word in ("-i", str(key.file))]
    refused = door.ssh("true", key=keys[0], options=(*more[2:], "-i", str(door.key.file)))
    assert b"Too many keys were tried" in refused.stderr


def test_connections_of_one_peer_are_limited(door: Door) -> None:
    port = door.access["ssh_port"]
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    try:
        greeted = 0
        for one in held:
            one.settimeout(3)
            try:
                greeted += bool(one.recv(100))
            except ConnectionError:
                continue
        assert greeted == 32
    finally:
        for one in held:
            one.close()
    eventually(lambda: door.ssh("true").returncode == 0)


def test_a_session_takes_its_place_when_it_is_asked_for_and_gives_it_back() -> None:
    gate = SimpleNamespace(has_room=lambda assignment: True)
    connection = Connection(gate)  # type: ignore[arg-type]
    connection._candidate = (SimpleNamespace(assignment="asg_a"), "")  # type: ignore[assignment]
    asked = [connection.session_requested() for _ in range(SESSIONS_MAX + 5)]
    assert [session for session in asked[SESSIONS_MAX:] if session] == []
    first = asked[0]
    assert isinstance(first, Session)
    connection.closed(first)
    assert connection.session_requested()
    assert not connection.session_requested()


def test_sessions_of_one_connection_are_limited(door: Door) -> None:
    async def talk() -> None:
        async with await door.connect() as connection:
            for _ in range(10):
                await connection.create_process("sleep 600")
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.create_process("sleep 600")

    asyncio.run(asyncio.wait_for(talk(), 20))


def test_channels_of_one_instance_are_limited_over_all_of_its_connections(own_door: Door) -> None:
    async def talk() -> None:
        port = await asyncio.to_thread(port_that_listens, own_door)
        connections = [await own_door.connect() for _ in range(CHANNELS_MAX // FORWARDS_MAX + 1)]
        held = []
        for connection in connections[:-1]:
            held += [await connection.open_connection("localhost", port) for _ in range(FORWARDS_MAX)]
        assert len(held) == CHANNELS_MAX
        with pytest.raises(asyncssh.ChannelOpenError, match="256 sessions and ports of this instance are open"):
            await connections[-1].create_process("true")
        with pytest.raises(asyncssh.ChannelOpenError, match="close one first"):
            await connections[-1].open_connection("localhost", port)
        held[0][1].close()
        await held[0][1].wait_closed()
        for _ in range(100):
            with contextlib.suppress(asyncssh.ChannelOpenError):
                assert (await connections[-1].run("echo there")).stdout == "there\n"
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the place of a channel that was closed is not given back")
        for connection in connections:
            connection.close()

    asyncio.run(asyncio.wait_for(talk(), 60))


def port_that_listens(door: Door) -> int:
    """Have a program in the instance that listens, and takes all who come; return its port."""
    script = (
        "import socket, time\n"
        "s = socket.create_server(('127.0.0.1', 0), backlog=512)\n"
        "open('port', 'w').write(str(s.getsockname()[1]) + chr(10))\n"
        "held = []\n"
        "while True: held.append(s.accept())\n"
    )
    (door.work / "listen.py").write_text(script)
    door.ssh("nohup python3 listen.py > /dev/null 2>&1 < /dev/null &")
    eventually(lambda: (door.work / "port").exists() and (door.work / "port").read_text().endswith("\n"))
    return int((door.work / "port").read_text())


def test_the_agent_may_open_as_many_files_as_the_machine_allows_and_what_it_runs_as_many_as_before(
    tmp_path: Path,
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (700, before[1]))
    try:
        with a_door(tmp_path) as door:
            limits = resource.prlimit(door.agent.process.pid, resource.RLIMIT_NOFILE)
            assert limits == (before[1], before[1])
            assert door.ssh("ulimit -n").stdout == b"700\n"
            door.run("asg_b", command=["sh", "-c", "ulimit -n > files; exec sleep 60"], instance="ins_b", name="b")
            told = door.home / "workloads" / "asg_b" / "work" / "files"
            eventually(lambda: told.exists() and told.read_text() == "700\n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_port_that_is_taken_is_said_at_the_start(start_agent: Any, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        agent = start_agent("--ssh-port", str(port), "--ssh-listen", "127.0.0.1")
        assert agent.exit_code() == 2
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in agent.log


def test_an_agent_without_a_gateway_tells_none(start_agent: Any, plane: Any) -> None:
    start_agent()
    eventually(lambda: plane.reports)
    assert "access" not in plane.reports[0]["inventory"]


def test_a_port_that_speaks_first_and_hangs_up_is_heard_to_its_end(door: Door) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                peer.sendall(b"220 greetings\r\n")
                peer.close()

        threading.Thread(target=greet, daemon=True).start()
        said = [door.ssh(options=("-W", f"localhost:{server.getsockname()[1]}")).stdout for _ in range(5)]
        server.shutdown(socket.SHUT_RDWR)
    assert said == [b"220 greetings\r\n"] * 5


def test_much_passes_through_a_port_both_ways(door: Door) -> None:
    data = os.urandom(8 << 20)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            peer, _ = server.accept()
            with peer:
                while piece := peer.recv(1 << 16):
                    peer.sendall(piece)

        threading.Thread(target=echo, daemon=True).start()
        assert door.ssh(options=("-W", f"localhost:{server.getsockname()[1]}"), stdin=data).stdout == data


def test_a_port_where_nobody_listens_is_said_to_be_so(door: Door) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert b"stdio forwarding failed" in door.ssh(options=("-W", f"localhost:{port}")).stderr
