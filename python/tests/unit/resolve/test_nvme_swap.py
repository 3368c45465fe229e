"""DeepSpeed empties the folder that it swaps to: it gets one of the run's own, on a disk that is really there."""
import pytest

from debzero.resolve import deepspeed_config, nvme_swap


def reason(path, output="/out"):
    found = nvme_swap.problems(str(path), output, "job.yml")
    assert all(p.key == "zero.nvme_path" and p.fix for p in found)
    return found[0].reason if found else ""


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setattr(nvme_swap, "file_system", lambda path: "ext4")
    return tmp_path


def test_a_folder_on_a_disk_will_do(disk):
    assert reason(disk) == ""
    own = nvme_swap.prepare(str(disk), "/var/lib/debzero/mrpc")
    assert own == disk / "debzero-swap" / "var-lib-debzero-mrpc" and reason(disk, "/var/lib/debzero/mrpc") == ""


def test_what_is_not_there_or_no_folder_is_named(disk):
    assert "does not exist" in reason(disk / "nowhere")
    (disk / "file").touch()
    assert "not a folder" in reason(disk / "file")


def test_somebody_elses_files_are_not_touched(disk):
    own = nvme_swap.folder(str(disk), "/out")
    own.mkdir(parents=True)
    (own / "thesis.tex").touch()
    assert "not created by debzero" in reason(disk)
    (own / nvme_swap.MARK).touch()
    assert reason(disk) == ""


@pytest.mark.parametrize("kind", ["tmpfs", "nfs4", "overlay"])
def test_memory_and_networks_are_no_disks(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(nvme_swap, "file_system", lambda path: kind)
    assert kind in reason(tmp_path)


def test_the_file_system_is_found(tmp_path):
    from pathlib import Path

    assert nvme_swap.file_system(Path("/proc/self")) == "proc"


def test_a_mount_point_without_its_disk_is_refused(tmp_path):
    table = tmp_path / "fstab"
    table.write_text(f"# comment\nUUID=1 / ext4 defaults 0 1\nUUID=2 {tmp_path}/nvme ext4 defaults 0 2\n")
    assert nvme_swap._unmounted(tmp_path / "nvme" / "swap", table) == f"{tmp_path}/nvme"
    assert nvme_swap._unmounted(tmp_path / "elsewhere", table) is None


def test_deepspeed_is_given_the_runs_own_folder_whatever_the_json_says(bench):
    import yaml

    from debzero.job.schema import Job
    from debzero.resolve.host import HostGpus
    from debzero.resolve.resolve import resolve

    values = yaml.safe_load(bench.job(zero={"stage": 3, "offload_optimizer": "nvme", "nvme_path": "/nvme"}).read_text())
    theirs = {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/precious"}}}
    resolved = resolve(Job.model_validate({**values, "deepspeed": theirs}), HostGpus(2, True), 2, "job.yml", theirs)
    made = deepspeed_config.generate(resolved, 32, 10, "/nvme/own", {"block_size": 1})["zero_optimization"]
    assert made["offload_param"]["nvme_path"] == made["offload_optimizer"]["nvme_path"] == "/nvme/own"
