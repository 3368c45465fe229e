"""Shell scripts in playbooks and roles, with stand-ins for the commands that ask the host."""
from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = "/usr/lib/debzero/runtime/env/1+a-0f"


def run(script: str, folder: Path, values: dict[str, str], **answers: str) -> str:
    """What the script prints; each of the answers is what the command of that name prints, or is a shell script."""
    for name, value in values.items():
        script = script.replace("{{ " + name + " }}", value)
    assert "{{" not in script
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    for name, answer in answers.items():
        (commands / f"{name}.txt").write_text(answer)
        (commands / name).write_text(answer if answer.startswith("#!") else f"#!/bin/sh\ncat {commands}/{name}.txt\n")
        (commands / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True, text=True).stdout


def script_of(role: str, tasks: str, number: int = 0) -> str:
    steps = yaml.safe_load((ROOT / f"roles/{role}/tasks/{tasks}.yml").read_text())
    return [step["ansible.builtin.shell"]["cmd"] for step in steps if "ansible.builtin.shell" in step][number]


def test_trainings_of_either_environment_are_spared(tmp_path: Path) -> None:
    steps = yaml.safe_load((ROOT / "roles/base/tasks/spare_jobs.yml").read_text())
    processes = [
        "1 - /opt/venv/bin/python -I /usr/share/debzero/command.py train a.yml",
        f"2 session-1.scope {ENVIRONMENT}/bin/python -I /usr/share/debzero/command.py tune a.yml",
        f"3 debzero@a.service {ENVIRONMENT}/bin/python -I /usr/share/debzero/command.py train a.yml",
        f"4 - {ENVIRONMENT}/bin/python -I /usr/share/debzero/command.py status a",
        "5 - /usr/bin/python3 -I /usr/share/debzero/command.py train a.yml"]
    told = run(steps[0]["ansible.builtin.shell"]["cmd"], tmp_path, {"stack.venv": "/opt/venv"}, ps="\n".join(processes),
               systemctl="debzero@a.service loaded active running a\n")
    assert told.splitlines() == ["debzero@a.service", "process 1", "process 2"]


@pytest.fixture
def host(tmp_path: Path) -> dict[str, str]:
    """Folders of a host, by the names that scripts have for them."""
    names = {"trainer_kept": "kept", "stack.config": "etc", "stack.cache": "cache", "stack.prefix": "opt"}
    for name in ("etc", "cache", "opt"):
        (tmp_path / name).mkdir()
    return {"trainer_staying | quote": "'debzero-runtime-torch=1.13-1\ndebzero-runtime=2-1'", "__trainer_copy":
            f"{tmp_path}/cache/debzero_2_all.deb", **{name: f"{tmp_path}/{folder}" for name, folder in names.items()}}


HAD = """installed debzero=1:1-1
installed debzero-runtime=1-1
installed debzero-runtime-torch=1.13-1
config-files debzero-runtime-ops=0.1-1
"""
DOWNLOAD = '#!/bin/sh\n[ "$2" = download ] && echo "$3" >"${3%%=*}_1_amd64.deb"\n'
UNITS = "".join(f"debzero@{name}.service loaded active running\n" for name in ("both", "started"))


def test_an_interrupted_upgrade_s_jobs_and_those_that_run_now_train_again(tmp_path: Path, host: dict[str, str]) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "jobs").write_text("stopped\nboth\n")
    (kept / "packages").write_text("debzero-runtime=1-1\n")
    run(script_of("trainer", "keep_release"), tmp_path, host, systemctl=UNITS, **{"apt-get": DOWNLOAD})
    assert (kept / "jobs").read_text().split() == ["both", "started", "stopped"]
    assert [path.name for path in (kept / "debs").iterdir()] == ["debzero-runtime_1_amd64.deb"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "commands", "etc", "kept", "opt"]


def test_what_would_have_to_come_back_is_there_before_anything_stops(tmp_path: Path, host: dict[str, str]) -> None:
    keep, answers = script_of("trainer", "keep_release"), {"systemctl": UNITS, "dpkg-query": HAD}
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run(keep, tmp_path, host, **answers, **{"apt-get": "#!/bin/sh\nexit 100\n"})
    assert "the package debzero=1:1-1, which this host would go back to, is neither in its archives" in (
        refused.value.stderr)
    assert not (tmp_path / "kept").exists()

    # The trainer that came from a file is in the cache.
    (tmp_path / "cache/debzero_1:1-1_all.deb").write_text("the trainer")
    run(keep, tmp_path, host, **answers, **{"apt-get": DOWNLOAD})
    assert {path.name: path.read_text() for path in (tmp_path / "kept/debs").iterdir()} == {
        "debzero_1:1-1_all.deb": "the trainer", "debzero-runtime_1_amd64.deb": "debzero-runtime=1-1\n"}

    with pytest.raises(subprocess.CalledProcessError) as refused:
        run(keep, tmp_path, {**host, "trainer_kept": f"{tmp_path}/other"}, systemctl=UNITS,
            **{"dpkg-query": "#!/bin/sh\nexit 1\n"})
    assert "debzero is not installed: run site.yml" in refused.value.stderr


def test_a_failed_upgrade_takes_back_what_was_kept_and_nothing_else(tmp_path: Path, host: dict[str, str]) -> None:
    kept, log = tmp_path / "kept", tmp_path / "log"
    (tmp_path / "opt/venv").mkdir()
    (tmp_path / "cache/debzero_2_all.deb").write_text("the failed one")
    (kept / "debs").mkdir(parents=True)
    for name in ("debzero_1_all.deb", "debzero-runtime_1_amd64.deb"):
        (kept / "debs" / name).write_text(name)
    (kept / "packages").write_text("debzero=1\ndebzero-runtime=1-1\ndebzero-runtime-torch=1.13-1\n")
    (kept / "jobs").write_text("")
    (kept / "before").write_text("")
    run(script_of("trainer", "restore_release"), tmp_path, host, systemctl="", dpkg=f'#!/bin/sh\necho "$@" >>{log}\n',
        **{"dpkg-query": "debzero-runtime\ndebzero-runtime-inference\ndebzero-runtime-torch\n"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "commands", "etc", "kept", "log", "opt"]
    run(script_of("trainer", "forget_release"), tmp_path, host)
    assert log.read_text().splitlines() == [
        "--purge debzero-runtime-inference",
        "--install --force-confdef --force-confold debzero-runtime_1_amd64.deb debzero_1_all.deb"]
    assert [path.name for path in (tmp_path / "opt").iterdir()] == ["before"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["debzero_1_all.deb"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "commands", "etc", "log", "opt"]


def test_what_was_kept_stays_until_all_of_it_is_given_back(tmp_path: Path, host: dict[str, str]) -> None:
    kept = tmp_path / "kept"
    (kept / "debs").mkdir(parents=True)
    for name in ("debs/debzero_1_all.deb", "jobs", "packages", "before"):
        (kept / name).write_text(f"{name}\n")
    restore, answers = script_of("trainer", "restore_release"), {"systemctl": "", "dpkg-query": ""}
    with pytest.raises(subprocess.CalledProcessError):
        run(restore, tmp_path, host, dpkg="#!/bin/sh\nexit 1\n", **answers)
    assert sorted(path.name for path in kept.rglob("*")) == ["before", "debs", "debzero_1_all.deb", "jobs", "packages"]
    (tmp_path / "opt").rename(tmp_path / "gone")  # between two renames
    run(restore, tmp_path, host, dpkg="", **answers)
    assert [path.name for path in (tmp_path / "opt").iterdir()] == ["before"]
    assert (tmp_path / "cache/debzero_1_all.deb").read_text() == "debs/debzero_1_all.deb\n"


def test_what_was_kept_is_forgotten_whole_or_not_at_all(tmp_path: Path, host: dict[str, str]) -> None:
    """An rm that fails on what is there stands for an interruption. Its rest is no obstacle to the next upgrade."""
    forget = script_of("trainer", "forget_release")
    (tmp_path / "kept/debs").mkdir(parents=True)
    with pytest.raises(subprocess.CalledProcessError):
        run(forget, tmp_path, host, rm='#!/bin/sh\n[ ! -e "$2" ]\n')
    assert [path.name for path in tmp_path.glob("kept*")] == ["kept.done"]
    (tmp_path / "kept/debs").mkdir(parents=True)
    run(forget, tmp_path, host, rm='#!/bin/sh\nexec /bin/rm "$@"\n')
    assert not list(tmp_path.glob("kept*"))


def test_a_package_has_the_name_of_an_installed_one_only_when_it_is() -> None:
    """A run that ended between the copy and dpkg left a copy that the next one took for what is installed."""
    steps = yaml.safe_load((ROOT / "roles/trainer/tasks/install_package.yml").read_text())
    (keeps,) = [step for step in steps if "mv" in str(step.get("ansible.builtin.command"))]
    assert keeps["ansible.builtin.command"]["argv"][1:] == ["{{ __trainer_arriving_deb }}",
                                                            "{{ __trainer_installed_deb }}"]
    copies = [step["ansible.builtin.copy"]["dest"] for step in steps if "ansible.builtin.copy" in step]
    assert steps[-1] == keeps and copies == ["{{ __trainer_arriving_deb }}"]


def test_names_of_jobs_are_kept_as_they_are_and_no_half_package(tmp_path: Path, host: dict[str, str]) -> None:
    (tmp_path / "cache/debzero_1:1-1_all.deb").write_text("the trainer")
    units = "debzero@a\\x2db.service loaded active running\n"
    cut = '#!/bin/sh\nfor last; do :; done\n[ "$1" = -al ] && exec /bin/cp "$@"\necho half >"$last"\nexit 1\n'
    run(script_of("trainer", "keep_release"), tmp_path, host, systemctl=units, cp=cut,
        **{"dpkg-query": HAD, "apt-get": DOWNLOAD})
    assert (tmp_path / "kept/jobs").read_text() == "a\\x2db\n"
    assert (tmp_path / "kept/debs/debzero_1_amd64.deb").read_text() == "debzero=1:1-1\n"


def test_a_prefix_that_cannot_be_given_back_is_refused(tmp_path: Path, host: dict[str, str]) -> None:
    (tmp_path / "opt").rmdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "opt").symlink_to(tmp_path / "disk")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run(script_of("trainer", "keep_release"), tmp_path, host, systemctl=UNITS, **{"dpkg-query": HAD})
    assert "is a link or a mount point" in refused.value.stderr
    assert not list((tmp_path / "disk").iterdir()) and not (tmp_path / "kept").exists()


def gpg(home: Path, *words: str) -> str:
    return subprocess.run(["gpg", "--batch", "--homedir", str(home), "--pinentry-mode", "loopback", *words], check=True,
                          capture_output=True, text=True).stdout


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Path]:
    """A folder of exported keys; the one that signs is `good`. gpg's sockets need a short path."""
    with TemporaryDirectory() as made:
        (Path(made) / "gpg-agent.conf").write_text("s2k-count 65536\n")  # the passphrase need not be strong
        for name, word, *more in (("good", ""), ("locked", "secret"),
                                  ("expired", "", "--faked-system-time", "20200101T000000!")):
            gpg(Path(made), "--passphrase", word, *more, "--quick-gen-key", name, "ed25519", "sign",
                "1d" if more else "never")
            (tmp_path / name).write_text(gpg(Path(made), "--passphrase", word, "--armor", "--export-secret-keys", name))
        (tmp_path / "several").write_text((tmp_path / "good").read_text() + (tmp_path / "locked").read_text())
        (tmp_path / "public").write_text(gpg(Path(made), "--armor", "--export", "good"))
        (tmp_path / "none").write_text("no key")
        subprocess.run(["gpgconf", "--homedir", made, "--kill", "gpg-agent"], check=True)
        yield tmp_path


def test_a_key_that_cannot_sign_reaches_no_client(tmp_path: Path, keys: Path) -> None:
    """Nor does a later run trust it beside the one that signs, or take it for that one."""
    make = script_of("repository", "make_key")
    with TemporaryDirectory() as private:
        folders = {"__repository_keys | quote": f"{private}/gnupg", "__repository_given | quote": f"{private}/given"}

        def give(name: str) -> str:
            Path(f"{private}/given").write_text((keys / name).read_text())
            return run(make, tmp_path, folders)

        def refused(name: str) -> str:
            with pytest.raises(subprocess.CalledProcessError) as error:
                give(name)
            return error.value.stderr.splitlines()[-1].partition("exported from gpg: ")[2] or error.value.stderr

        assert {name: refused(name).partition(" (")[0] for name in ("none", "public", "several", "locked", "expired")
                } == {"none": "gpg cannot read it", "public": "this file has the public part alone",
                      "several": "this file has several", "locked": "this one cannot sign",
                      "expired": "this one cannot sign"}
        assert not list(Path(private).iterdir())
        assert [give("good"), give("good"), run(make, tmp_path, folders)] == ["new\n", "", ""]
        assert "and clients trust" in refused("locked")
        (kept,) = Path(private).iterdir()
        assert re.findall(r"(?m)^uid:.*::(\w+)::", gpg(kept, "--with-colons", "--list-keys")) == ["good"]
        subprocess.run(["gpgconf", "--homedir", str(kept), "--kill", "gpg-agent"], check=True)


def test_a_repository_lies_where_root_alone_may_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name, mode in (("safe", 0o755), ("shared", 0o777), ("sticky", 0o1777)):
        (tmp_path / name / "there").mkdir(parents=True)
        (tmp_path / name).chmod(mode)
    (tmp_path / "link").symlink_to(tmp_path / "shared/there")
    look = script_of("repository", "install_aptly")

    def look_at(name: str) -> str:
        return run(look, tmp_path, {"repository_folder | quote": f"{tmp_path}/{name}"})

    assert [look_at(name) for name in ("safe/new/folder", "sticky/there", "sticky/new")] == ["", "", ""]
    for name in ("shared/new", "shared/there/new", "link", "link/new"):
        with pytest.raises(subprocess.CalledProcessError) as refused:
            look_at(name)
        assert f"others than root may write {tmp_path}/shared - " in refused.value.stderr
