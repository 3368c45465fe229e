"""What a start of a job does with the runs in its output folder, and what is said about it beforehand."""
import json
import shutil

import pytest
from support import plan_of

from debzero.base.files import write_json
from debzero.cli import main
from debzero.resolve.host import HostGpus
from debzero.resolve.resolve import resolve
from debzero.run import decision
from debzero.run import open as opening
from debzero.run.folder import RunFolder

PER_EPOCH = 13  # 400 training rows of the bench, 32 in a global batch


def leave(folder, resolved, step, state="stopped"):
    """What a run of the job leaves that has come to `step`."""
    made = RunFolder(str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    made.begin("job.yml", resolved.identity, step)
    made.note_steps_per_epoch(PER_EPOCH)
    made.update(state=state, total_steps=decision.total_steps(resolved.job.train, PER_EPOCH))
    (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
    if state == "finished":
        (folder / "model").mkdir()
    return made


def archived(bench, name, *run, **changes):
    leave(bench.folder / "out" / "archive" / name, plan_of(bench, **changes), *run)


def says(bench, folder, **changes):
    return str(decision.decide(plan_of(bench, **changes), folder))


def test_a_run_that_is_lengthened_or_watched_otherwise_continues(bench):
    folder = leave(bench.folder / "out", plan_of(bench), 10)
    assert says(bench, folder) == "resumes after step 10 of 26"
    assert says(bench, folder, train__micro_batch=4, train__compile="never") == "resumes after step 10 of 26"
    schedule = ". Its learning rate is from now on that of a run of the new length"
    for changes, expected in [
            ({"train__epochs": 3}, "continues after step 10 of 39 with train.epochs 2 -> 3" + schedule),
            ({"train__epochs": 1}, "continues after step 10 of 13 with train.epochs 2 -> 1" + schedule),
            ({"train__max_steps": 10}, "continues after step 10 of 10 with train.max_steps not set -> 10" + schedule),
            ({"train__max_steps": 99}, "continues after step 10 of 26 with train.max_steps not set -> 99"),
            ({"train__metric": "f1", "train__patience": 2, "train__evaluate_every": 5},
             "continues after step 10 of 26 with train.evaluate_every not set -> 5, train.metric auto -> f1, "
             "train.patience not set -> 2")]:
        assert says(bench, folder, **changes) == expected


def test_a_finished_run_is_continued_only_where_something_is_left_to_do(bench):
    folder = leave(bench.folder / "out", plan_of(bench), 26, "finished")
    assert says(bench, folder) == "has finished, after step 26 of 26"
    assert says(bench, folder, train__evaluate_every=5, train__log_every=3) == "has finished, after step 26 of 26"
    assert says(bench, folder, train__max_steps=99) == "has finished, after step 26 of 26", "epochs end it all the same"
    assert says(bench, folder, train__epochs=4).startswith("continues after step 26 of 52 with train.epochs 2 -> 4")
    assert says(bench, folder, train__metric="f1") == (
        "continues after step 26 of 26 with train.metric auto -> f1. Its result so far is kept in archive/")
    shutil.rmtree(folder.checkpoints)
    assert says(bench, folder, train__epochs=4) == (
        "starts anew because the finished run there has no intact checkpoint to continue from: train.epochs 2 -> 4. "
        "The run there (step 26 of 26) moves to archive/")


def test_a_run_that_is_beyond_the_new_end_is_left(bench):
    folder = leave(bench.folder / "out", plan_of(bench), 20)
    assert says(bench, folder, train__epochs=1) == (
        "starts anew because this job ends at step 13 and the run there is beyond it: train.epochs 2 -> 1. The run "
        "there (step 20 of 26) moves to archive/")


def test_what_makes_another_training_is_named(bench):
    folder = leave(bench.folder / "out", plan_of(bench), 10)
    moves = ". The run there (step 10 of 26) moves to archive/"
    for changes, named in [
            ({"train__learning_rate": 3e-5, "train__epochs": 5}, "train.learning_rate 0.01 -> 3e-5"),
            ({"model__hidden_size": 16, "data__held_out": None},
             "model.hidden_size 32 -> 16, data.held_out 0.2 -> not set"),
            ({"model": "bert-base-uncased"}, "model bert from scratch -> bert-base-uncased"),
            ({"data__dataset": "glue/mrpc"}, f"data.dataset {bench.folder}/rows.csv -> glue/mrpc")]:
        assert says(bench, folder, **changes) == f"starts anew because this is another training: {named}" + moves
    with (bench.folder / "rows.csv").open("a") as rows:
        rows.write("one more,animal\n")
    assert says(bench, folder, train__seed=1) == (
        "starts anew because this is another training: train.seed 101 -> 1, the data's content (rows.csv)" + moves)


def test_a_setting_is_named_where_it_is_written(bench):
    def with_json(place, **config):
        job = plan_of(bench, deepspeed=place or config).job
        return resolve(job, HostGpus(0, False), 1, "job.yml", {"zero_optimization": {"stage": 1}, **config})

    first = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.99]}}}
    folder = leave(bench.folder / "out", with_json(None, **first), 10)
    other = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95]}}}
    for place, prefix, elsewhere in ((None, "deepspeed.", ""), ("/srv/ds.json", "", " in /srv/ds.json")):
        said = str(decision.decide(with_json(place, **other), folder))
        assert f": {prefix}optimizer.params.lr{elsewhere} 0.001 -> 0.0001, " in said
        assert f", {prefix}optimizer.params.betas{elsewhere} [0.9, 0.99] -> [0.9, 0.95]. " in said


def test_a_start_that_waited_for_other_hosts_in_vain_is_no_run(bench):
    folder = RunFolder(str(bench.output()))
    folder.folder.mkdir(parents=True, exist_ok=True)
    write_json(folder.hosts_file, {"host": "gpu1", "hosts": {"gpu1": None, "gpu2": None}, "missing": {"gpu2": ""}})
    assert says(bench, folder) == "begins: there is no run yet"


def test_an_unknown_run_is_left_and_never_mixed_with(bench):
    folder = RunFolder(str(bench.folder / "out"))
    assert says(bench, folder) == "begins: there is no run yet"
    (folder.folder / "model").mkdir(parents=True)
    assert "what the run there trained was not written down" in says(bench, folder)


def test_the_archived_run_that_fits_is_found_again(bench):
    folder = leave(bench.folder / "out", plan_of(bench, train__seed=2), 8)
    archived(bench, "2026-01-01", 10)
    archived(bench, "2026-01-02", 12)
    archived(bench, "2026-01-03", 0)
    archived(bench, "2026-01-04", 20, train__seed=3)
    out = bench.folder / "out"
    assert says(bench, folder) == (
        f"takes back the run in {out}/archive/2026-01-02, which fits, and resumes after step 12 of 26; the run there "
        "now moves to archive/")
    assert f"{out}/archive/2026-01-04, which fits, and continues after step 20 of 39 with train.epochs 2 -> 3" in says(
        bench, folder, train__seed=3, train__epochs=3)
    assert says(bench, folder, train__seed=2).startswith("resumes after step 8"), "what is there comes first"
    archived(bench, "2026-01-05", 26, "finished", train__seed=2)
    assert says(bench, folder, train__seed=2).startswith("resumes after step 8"), "as after --again"
    assert "takes back" not in str(decision.decide(plan_of(bench, train__seed=3), folder, again=True))
    archived(bench, "2026-01-06", 39, "finished", train__seed=2, train__epochs=3)
    assert "archive/2026-01-06, which fits, and has finished, after step 39 of 39" in says(
        bench, folder, train__seed=2, train__epochs=3), "rather than to continue the one that is there"


def test_a_killed_start_of_a_finished_run_is_no_finished_one(bench, monkeypatch):
    """The longer run is not taken for finished, and neither for another one."""
    folder, longer = leave(bench.folder / "out", plan_of(bench), 26, "finished"), plan_of(bench, train__epochs=4)

    def killed(path, values):
        if path.name == "run.json":
            raise KeyboardInterrupt
        write_json(path, values)

    monkeypatch.setattr("debzero.run.folder.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.begin("job.yml", longer.identity, 26)
    assert folder.status().state == "failed" and folder.status().step == 26
    assert says(bench, folder, train__epochs=4).startswith("continues after step 26 of 52")
    assert says(bench, folder) == "resumes after step 26 of 26"


def test_check_says_it_beforehand_and_train_before_it_moves_anything(bench, capsys):
    path = bench.job(output="out")
    assert main(["check", str(path)]) == 0
    assert "  run         begins: there is no run yet\n" in capsys.readouterr().out
    folder = leave(bench.folder / "out", plan_of(bench), 10)
    path = bench.job(output="out", train__learning_rate=3e-5)
    before = sorted(folder.folder.rglob("*"))
    assert main(["check", str(path)]) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  run "))
    assert "starts anew" in said and "train.learning_rate 0.01 -> 3e-5" in said
    assert main(["check", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["run"]
    assert facts["does"] == "starts anew" and facts["archives"] and facts["contents"] == []
    assert facts["changes"] == [{"key": "train.learning_rate", "old": 0.01, "new": 3e-5}]
    assert sorted(set(folder.folder.rglob("*")) - set(before)) in ([], [folder.data, folder.data / "digests.json"])
    assert opening.open_folder(plan_of(bench, train__learning_rate=3e-5), folder, "job.yml", again=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "this job " + said.split(maxsplit=1)[1]
    assert f"is now in {folder.folder}/archive/" in second
