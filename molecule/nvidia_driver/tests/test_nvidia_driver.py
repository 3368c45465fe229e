"""Debian's driver must be built for Bullseye's kernel, complete, and safe from upgrades. (No module is loaded here.)"""

import json

import pytest

STATE = "/var/lib/debzero-driver"


@pytest.fixture(scope="module")
def kernel(host):
    return host.check_output("apt-cache depends linux-headers-amd64 | sed -n 's/.* linux-headers-//p'")


@pytest.fixture(scope="module")
def version(host):
    return json.loads(host.file(f"{STATE}/version.json").content_string)["version"]


def test_the_modules_are_built_for_that_kernel(host, kernel, version):
    for module in ("nvidia-current", "nvidia-current-uvm"):
        assert host.check_output(f"modinfo --set-version {kernel} --field vermagic {module}").startswith(f"{kernel} ")
    assert host.check_output(f"modinfo --set-version {kernel} --field version nvidia-current") == version.split("-")[0]


@pytest.mark.parametrize("package", ["libcuda1", "nvidia-smi", "libnvidia-cfg1", "nvidia-kernel-dkms"])
def test_every_part_is_of_the_recorded_version(host, version, package):
    assert host.package(package).version == version


def test_nothing_for_screens_came_along(host):
    assert host.run("dpkg --list | grep -E '^ii +(xserver|libgl1|nvidia-driver-libs)'").stdout == ""


def test_the_packages_are_kept_for_the_way_back(host, version):
    assert [name for name in host.file(f"{STATE}/packages/{version}").listdir()
            if name.startswith("nvidia-kernel-dkms")]
    assert host.file(f"{STATE}/packages").listdir() == [version]


def test_upgrades_leave_the_driver_alone_and_not_the_kernel(host):
    held = host.check_output("apt-mark showhold").split()
    assert {"nvidia-kernel-dkms", "libcuda1", "nvidia-smi", "nvidia-persistenced"} <= set(held)
    blocked = host.check_output("apt-config dump Unattended-Upgrade::Package-Blacklist")
    assert '"libcuda1$"' in blocked
    assert "linux-" not in " ".join(held) + blocked
    assert "nvidia" not in host.check_output("apt-get dist-upgrade --simulate | grep ^Inst || true")


def test_nouveau_stays_away_and_the_daemon_starts_at_boot(host):
    assert "blacklist nouveau" in host.check_output("modprobe --showconfig").splitlines()
    assert host.check_output("systemctl is-enabled nvidia-persistenced") == "enabled"
