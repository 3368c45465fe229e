"""DeepSpeed empties the folder that it swaps to: it gets one of the run's own, on a disk that is really there."""
import json
import os
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from others import give

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
    assert own.parent == disk and own.name.startswith("debzero-swap-mrpc-") and own.stat().st_mode & 0o777 == 0o700
    assert reason(disk, "/var/lib/debzero/mrpc") == "" and nvme_swap.prepare(str(disk), "/var/lib/debzero/mrpc") == own


@given(st.lists(st.text(string.ascii_letters + "/-_.", min_size=1), min_size=2, max_size=2, unique_by=os.path.abspath))
def test_two_outputs_never_share_a_folder(outputs):
    one, other = (nvme_swap.folder("/nvme", os.path.abspath(output)) for output in outputs)
    assert one != other and one.parent == other.parent == Path("/nvme")


@pytest.mark.parametrize("pair", [("/a/b-c", "/a-b/c"), ("/a/b", "/a-b"), ("/x" * 900, "/x" * 901)])
def test_such_names_were_once_the_same(pair):
    one, other = (nvme_swap.folder("/nvme", output) for output in pair)
    assert one != other and len(one.name) < 255


def test_what_another_user_has_put_in_its_place_is_refused(disk):
    own = nvme_swap.folder(str(disk), "/out")
    own.symlink_to(disk)
    assert "is not a folder of the user that runs the job" in reason(disk)
    own.unlink()
    own.mkdir()
    assert reason(disk) == ""
    give(own)
    assert "is not a folder of the user that runs the job" in reason(disk)


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


@pytest.mark.parametrize("aio", [None, 3, "x"])
def test_settings_that_are_none_are_measured_again(tmp_path, monkeypatch, aio):
    monkeypatch.setattr(nvme_swap, "_measure", lambda file, settings: 1e9)
    kept = tmp_path / "aio.json"
    kept.write_text(json.dumps({"folder": str(tmp_path), "aio": aio}))
    found = nvme_swap.aio_settings(tmp_path, kept, str)
    assert found["block_size"] and nvme_swap.aio_settings(tmp_path, kept, str) == found


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
