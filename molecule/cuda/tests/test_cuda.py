"""Everybody gets the wanted release of the compiler; nothing else comes from NVIDIA's repository; apt manages it."""

from pathlib import Path

import pytest
import yaml

STACK = yaml.safe_load((Path(__file__).resolve().parents[3] / "stack.yml").read_text())["stack"]
SERIES = STACK["cuda"].replace(".", "-")


def candidate(host, package):
    return host.check_output(f"apt-cache policy {package} | sed -n 's/ *Candidate: //p'")


def test_a_login_shell_finds_the_compiler(host):
    assert f"release {STACK['cuda']}," in host.check_output("bash -lc 'nvcc --version'")
    assert host.check_output("bash -lc 'echo $CUDA_HOME'") == STACK["cuda_home"]


def test_the_service_reads_the_same_settings(host):
    settings = host.file(f"{STACK['config']}/host.env").content_string.splitlines()
    assert {f"CUDA_HOME={STACK['cuda_home']}", "DEBZERO_GPUS=0"} <= set(settings)
    environment = host.check_output(
        f"systemd-run --quiet --pipe --wait -p EnvironmentFile={STACK['config']}/host.env env")
    assert f"CUDA_HOME={STACK['cuda_home']}" in environment.splitlines()


def test_a_login_shell_has_the_system_s_gcc_first(host):
    path = host.check_output("bash -lc '. /etc/profile.d/debzero.sh; echo $PATH'").split(":")
    assert path.count(f"{STACK['cuda_home']}/bin") == 1 and path[-1] == f"{STACK['cuda_home']}/bin"


def test_a_later_release_does_not_take_the_link(host):
    host.check_output("mkdir -p /usr/local/cuda-99")
    host.check_output("update-alternatives --install /usr/local/cuda cuda /usr/local/cuda-99 990")
    try:
        assert host.file(STACK["cuda_home"]).linked_to == f"/usr/local/cuda-{STACK['cuda']}"
    finally:
        host.check_output("update-alternatives --remove cuda /usr/local/cuda-99 && rmdir /usr/local/cuda-99")


@pytest.mark.parametrize("package", [
    "nvidia-driver", "libcuda1", "nvidia-smi", "zlib1g", "cuda", "cuda-drivers", "cuda-nvcc-12-4", "cuda-nvcc-11-8",
    f"cuda-{SERIES}", f"cuda-runtime-{SERIES}", f"cuda-demo-suite-{SERIES}"])
def test_nothing_else_can_come_from_the_repository(host, package):
    offered = host.check_output(f"apt-cache madison {package}")
    assert "127.0.0.1:8011" in offered, "the trap is not in the repository"
    held = candidate(host, package)
    assert held == "(none)" or not [line for line in offered.splitlines() if held in line and "127.0.0.1:8011" in line]


def test_what_the_releases_share_is_of_the_wanted_one(host):
    assert candidate(host, "cuda-toolkit-config-common").startswith(f"{STACK['cuda']}.")
    assert candidate(host, "cuda-toolkit-11-config-common").startswith(f"{STACK['cuda']}.")


def test_an_upgrade_changes_nothing(host):
    host.check_output("apt-get update")
    plan = host.check_output("apt-get dist-upgrade --simulate")
    touched = [line for line in plan.splitlines() if line.startswith(("Inst ", "Remv ")) and "cud" in line]
    assert not touched


def test_cudnn_is_a_package_of_its_version(host):
    for name in ("libcudnn8", "libcudnn8-dev"):
        assert host.package(name).version == f"{STACK['cudnn']}-1+cuda11.6"
    assert host.check_output("dpkg --search /usr/include/x86_64-linux-gnu/cudnn.h").startswith("libcudnn8-dev:")
    library = f"/usr/lib/x86_64-linux-gnu/libcudnn.so.{'.'.join(STACK['cudnn'].split('.')[:3])}"
    assert host.check_output("readlink --canonicalize /usr/lib/x86_64-linux-gnu/libcudnn.so") == library
    assert host.check_output(f"dpkg --search {library}").startswith("libcudnn8:")
    assert host.run("dpkg --verify libcudnn8 libcudnn8-dev").stdout == ""


def test_cudnn_leaves_nothing_behind(host):
    assert host.check_output("find /var/tmp -name 'debzero-*'; find / -xdev -name '*_static_v8.a'") == ""


def test_the_linker_knows_the_libraries(host):
    assert f"{STACK['cuda_home']}/lib64" in host.check_output("ldconfig --verbose 2>/dev/null")


def test_apt_has_one_list_file_for_the_repository(host):
    assert host.check_output("grep --files-with-matches --recursive 127.0.0.1:8011 /etc/apt").splitlines() == [
        "/etc/apt/sources.list.d/cuda-debian11-x86_64.list"]
