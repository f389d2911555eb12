"""What a container may use, see and do: exactly what was rented."""

import subprocess

import httpx
import pytest

from provisioning.agent.confinement import is_root_writable, share_of_node
from provisioning.agent.network import IPTABLES
from provisioning.agent.store import Store
from tests.packages import needs
from tests.provisioning.agent.boxes import cdi_devices
from tests.provisioning.agent.cast import eventually

pytestmark = needs("podman")

LIMITS = """
cd /sys/fs/cgroup
if [ -d memory ]; then
    cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us
else
    cat memory.max pids.max; tr ' ' '\\n' < cpu.max
fi
"""


def test_its_limits_are_its_share_of_the_node(boxes, tmp_path):
    share = share_of_node(gpus=2, node_gpus=4)
    with cdi_devices(boxes.gpus, tmp_path):
        said = boxes.said("asg_a", LIMITS, gpus=boxes.gpus[:2])
    memory, pids, quota, period = map(int, said.split())
    assert memory == share.memory_mib << 20
    assert pids == share.pids
    assert quota / period == pytest.approx(share.cpus)


def test_shares_add_up_to_less_than_the_node():
    whole, quarter = share_of_node(gpus=8, node_gpus=8), share_of_node(gpus=2, node_gpus=8)
    assert quarter.memory_mib == whole.memory_mib // 4
    assert quarter.cpus == pytest.approx(whole.cpus / 4, abs=0.01)
    assert share_of_node(gpus=0, node_gpus=8) == share_of_node(gpus=1, node_gpus=8)


@pytest.mark.parametrize("named_by_index", [False, True])
def test_it_sees_the_rented_gpus_and_no_other(boxes, tmp_path, named_by_index):
    script = "ls /dev | grep nvidia; head -c 1 /dev/nvidia1 | wc -c; echo $CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES"
    rented = [boxes.gpus[1], boxes.gpus[3]]
    with cdi_devices(boxes.gpus, tmp_path, named_by_index=named_by_index):
        said = boxes.said("asg_a", script, gpus=rented).split()
    assert said[:3] == ["nvidia1", "nvidia3", "1"]
    assert said[3] == "0,1"  # The driver numbers them anew inside.


def test_an_old_specification_never_gives_a_neighbours_gpu(boxes, tmp_path):
    moved = [boxes.gpus[1], boxes.gpus[0], *boxes.gpus[2:]]  # It was written when these two stood the other way round.
    with cdi_devices(moved, tmp_path):
        boxes.want("asg_a", "running", gpus=[boxes.gpus[0]])
        seen = boxes.until("asg_a", "failed")
    assert "other GPUs than those rented" in seen.message
    assert boxes.containers() == []


def test_a_gpu_that_the_cdi_specification_does_not_know_is_a_failure_with_its_reason(boxes):
    boxes.want("asg_a", "running", gpus=[boxes.gpus[0]])
    seen = boxes.until("asg_a", "failed")
    assert "CDI" in seen.message
    assert boxes.containers() == []


def test_a_gpu_that_is_not_in_the_node_is_refused(boxes):
    boxes.want("asg_a", "running", gpus=["GPU-elsewhere"])
    assert boxes.until("asg_a", "failed").message == "GPU-elsewhere is not in this node"


def test_it_has_few_capabilities_and_gets_no_new_ones(boxes):
    said = boxes.said("asg_a", "grep -e Cap -e NoNewPrivs -e Seccomp: /proc/self/status")
    facts = dict(line.split(":\t") for line in said.splitlines())
    # CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID, NET_BIND_SERVICE.
    few = sum(1 << number for number in (0, 1, 3, 5, 6, 7, 10))
    assert {int(facts[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {few}
    assert int(facts["CapAmb"], 16) == 0
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")


def test_it_cannot_do_what_needs_more(boxes):
    script = """
    mount -t tmpfs none /tmp && echo mounted
    mknod /tmp/disk b 254 0 && echo made
    chroot /tmp / true && echo chrooted
    hostname other && echo renamed
    ip link set eth0 down && echo cut
    echo 1 > /proc/sys/kernel/panic && echo written
    kill -9 -1; echo end
    """
    assert boxes.said("asg_a", script).splitlines()[-1] == "end"
    assert not set(boxes.output("asg_a").split()) & {
        "mounted",
        "made",
        "chrooted",
        "renamed",
        "cut",
        "written",
    }


def test_it_sees_neither_the_hosts_files_nor_its_processes(boxes, tmp_path):
    (tmp_path / "secret").write_text("of the host")
    said = boxes.said("asg_a", f"cat {tmp_path}/secret /etc/shadow {boxes.home.path}/key; ls /proc | grep -c '^[0-9]'")
    assert "of the host" not in said
    assert boxes.home.key() not in said
    assert int(said.split()[-1]) < 6


def test_its_root_is_read_only_and_its_work_folder_is_not(boxes):
    script = "touch /etc/x || echo refused; touch /tmp/x /run/x /var/tmp/x /workspace/x && echo $HOME; pwd"
    assert boxes.said("asg_a", script).splitlines()[-3:] == ["refused", "/workspace", "/workspace"]


def test_an_order_or_an_image_may_ask_for_a_root_that_can_be_written_to(boxes, images):
    order = {"GPUMARKET_ROOT": "writable"}
    assert boxes.said("asg_a", "touch /etc/x && echo done", env=order) == "done\n"
    image = images.image("writable", "LABEL io.gpumarket.root=writable")
    assert boxes.said("asg_b", "touch /etc/x && echo done", image=image) == "done\n"
    assert not is_root_writable(boxes.home.document().find("asg_b"), {"Labels": {"io.gpumarket.root": "yes"}})


def test_nothing_of_the_agents_environment_reaches_it(boxes, monkeypatch):
    monkeypatch.setenv("GPUMARKET_JOIN_TOKEN", "secret")
    boxes.podman.env["HTTPS_PROXY"] = "http://user:secret@proxy.example"
    try:
        said = boxes.said("asg_a", "env", env={"MINE": "two\nlines", "PATH": "/bin:/mine", "PADDED": "  as it is = "})
    finally:
        del boxes.podman.env["HTTPS_PROXY"]
    assert "secret" not in said
    assert "MINE=two\nlines\n" in said
    assert "PATH=/bin:/mine\n" in said
    assert "PADDED=  as it is = \n" in said
    names = {line.partition("=")[0] for line in said.splitlines()} - {"lines"}
    assert names - {"container", "HOSTNAME", "TERM", "PWD", "SHLVL", "_", "OLDPWD"} == {
        *("PATH", "HOME", "PYTHONUNBUFFERED", "MINE", "PADDED"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"),
        *("GPUMARKET_INSTANCE_ID", "GPUMARKET_ASSIGNMENT_ID", "GPUMARKET_PEERS", "GPUMARKET_METADATA"),
        *("RANK", "NODE_RANK", "WORLD_SIZE", "NNODES", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        *("PET_NNODES", "PET_NODE_RANK", "PET_NPROC_PER_NODE", "PET_MASTER_ADDR", "PET_MASTER_PORT"),
    }


def test_the_values_of_variables_are_not_among_the_arguments_of_podman(boxes, monkeypatch):
    seen = []
    run = type(boxes.podman).run
    monkeypatch.setattr(
        type(boxes.podman), "run", lambda self, *words, **more: seen.append(words) or run(self, *words, **more)
    )
    boxes.said("asg_a", "true", env={"TOKEN": "hush-hush"})
    assert any(words[0] == "create" for words in seen)
    assert "hush-hush" not in str(seen)


def test_instances_cannot_reach_each_other(boxes):
    boxes.run("asg_a", "echo hello > /workspace/index.html; httpd -f -p 8080 -h /workspace")
    address = boxes.box("asg_a").address()

    def is_up() -> bool:
        try:
            return httpx.get(f"http://{address}:8080/").is_success
        except httpx.HTTPError:
            return False

    eventually(is_up)
    # What podman itself does for isolation must not be lost with a third network that goes.
    boxes.run("asg_c", "true", instance="ins_third")
    boxes.want("asg_c", "gone")
    boxes.until("asg_c", "gone")
    boxes.run("asg_b", f"timeout 3 wget -O - http://{address}:8080/ || echo unreachable $?", instance="ins_other")
    boxes.until("asg_b", "exited")
    assert "hello" not in boxes.output("asg_b")
    assert "unreachable 143" in boxes.output("asg_b"), boxes.output("asg_b")  # It waited in vain.


def test_no_container_can_send_a_frame_of_a_gangs_network(boxes):
    boxes.want("asg_a", "prepared")
    boxes.until("asg_a", "prepared")
    rule = ("-i", "podman+", "-p", "udp", "--dport", "4789", "-j", "DROP")
    subprocess.run([*IPTABLES, "-C", "PREROUTING", *rule], check=True)


def test_an_instance_is_entered_with_its_own_environment_and_confinement(boxes):
    boxes.run("asg_a", "trap 'exit' TERM; while :; do usleep 50000; done", name="demo", env={"MINE": "1"})
    boxes.look("asg_a")
    box = boxes.runtime.find("demo")
    assert box is boxes.runtime.find("ins_demo") is boxes.box("asg_a")
    script = "echo $MINE $YOURS $PATH; grep NoNewPrivs /proc/self/status; pwd; exit 5"
    entry = box.entry(script, tty=False, env={"YOURS": "2", "PATH": "/evil"})
    done = subprocess.run(entry.argv, env=entry.env, cwd=entry.cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "/evil" not in done.stdout
    assert done.stdout.split()[:2] == ["1", "2"]
    assert done.stdout.split()[-3:] == ["NoNewPrivs:", "1", "/workspace"]
    assert str(box.files().folder) == "/workspace"
    assert box.files().pid == boxes.inspect("asg_a")["State"]["Pid"]


ALONE = "ls /sys/class/net; cat /proc/net/route | wc -l; wget -T 2 -O - http://10.0.0.1/ 2>&1 | head -1"


def test_without_a_network_a_container_has_nothing_but_a_loopback(boxes):
    said = boxes.said("asg_a", ALONE, work={"has_network": False}).split("\n")
    assert said[:2] == ["lo", "1"]
    assert (
        boxes.podman.find(boxes.kind.container_name(boxes.box("asg_a").origin))["HostConfig"]["NetworkMode"] == "none"
    )


def test_files_are_carried_into_a_container_and_out_of_it_and_no_link_leads_out(boxes, plane):
    boxes.store = Store(plane.url, agent_version="1", who=lambda: {"node": "nod_a", "key": "k"})
    boxes.wake_up()
    inputs = plane.shelf.folder({"data/in.txt": b"input"})
    script = "cp data/in.txt out.txt; ln -s /etc/shadow link; ln -s / root; mkdir deep; ln -s /etc deep/etc"
    work = {"inputs": inputs, "outputs": ["out.txt", "link", "root/etc/hostname", "deep"]}
    boxes.run("asg_a", script, work=work)
    seen = boxes.until("asg_a", "exited")
    assert plane.shelf.files(seen.outputs) == {"out.txt": b"input"}
    assert seen.message == "it did not leave link, root/etc/hostname, deep"
