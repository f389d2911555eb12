"""Debian packages that some tests need. Without them a test skips and says what to install; CI lets none skip."""

import os
import shutil

import pytest

PACKAGES = {
    "chromium": "chromium",
    "gcc": "gcc libc6-dev",
    "ip": "iproute2",
    "nft": "nftables",
    "podman": "podman runc conmon netavark aardvark-dns fuse-overlayfs iptables busybox-static",
    "slurmctld": "slurm-wlm slurmctld slurmd slurm-client slurmrestd slurm-wlm-jwt-plugin munge",
    "ssh": "openssh-client",
}
ROOT_ONLY = {"ip", "nft", "podman", "slurmctld"}


def needs(program: str) -> pytest.MarkDecorator:
    """Skip what is marked where a program is missing, or where it needs root and we are not."""
    if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        return pytest.mark.skipif(True, reason=f"apt-get install {PACKAGES[program]}")
    return pytest.mark.skipif(program in ROOT_ONLY and os.geteuid() != 0, reason=f"{program} needs root here")
