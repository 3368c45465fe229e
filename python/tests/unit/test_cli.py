"""The command line as people type it: suggestions, help, exit codes."""
from __future__ import annotations

import ast
import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import SOURCE

from debzero import cli
from debzero.data import json_file


def mistyped(capsys, *arguments):
    """The last line of what is printed for arguments that argparse refuses."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("arguments", "expected"), [
    (["tran", "x.yml"], "unknown command 'tran': did you mean train?"),
    (["--verbose"], "unknown option '--verbose': did you mean --version?"),
    (["check", "x.yml", "--jsn"], "unknown option '--jsn': did you mean --json?"),
    (["plan", "x.yml", "--gpu-mem=40G"], "unknown option '--gpu-mem': did you mean --gpu-memory?"),
    (["status", "--wat"], "unknown option '--wat': did you mean --watch?"),
    (["stop", "demo", "--nonsense"], "unknown option '--nonsense': use one of: --help"),
    (["stop", "demo", "extra"], "unrecognized arguments: extra"),
    (["train"], "the following arguments are required: JOB.yml"),
    (["train", "x.yml", "--ranks", "0"], "argument --ranks: must be a whole number of at least 1, not '0'")])
def test_what_is_misspelled_gets_a_suggestion(capsys, arguments, expected):
    assert mistyped(capsys, *arguments).endswith(expected)


def test_the_journal_has_what_is_printed_in_its_order(tmp_path):
    script = ("import sys, debzero.doctor.command as doctor; from debzero import cli; "
              "doctor.for_a_job = lambda: print('this host can train'); "
              "sys.exit(cli.main(['train', '--doctor', 'nosuch.yml']))")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(SOURCE)}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 2 and done.stdout.splitlines()[0] == "this host can train", done.stdout


def test_a_word_like_nothing_gets_the_list_of_commands(capsys):
    line = mistyped(capsys, "xyzzy")
    assert ("unknown command 'xyzzy': use one of: train, check, plan, status, stop, predict, export, release, "
            "doctor, tune, bench") in line


def test_without_a_command_the_help_is_printed(capsys):
    assert cli.main([]) == 2
    text = capsys.readouterr().err
    assert text.startswith("usage: debzero") and "exit status:" in text


def test_every_command_has_one_line_of_help_and_examples(capsys):
    commands = cli.parser().commands.choices
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    overview = capsys.readouterr().out
    for name, command in commands.items():
        assert re.search(rf"^ +{name} +\S", overview, re.MULTILINE), name
        assert f"  debzero {name}" in command.format_help(), f"{name} has no example"


@pytest.mark.parametrize("columns", [60, 100])
def test_descriptions_are_as_wide_as_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    top = cli.parser()
    widest = [max(map(len, command.description.splitlines())) for command in (top, *top.commands.choices.values())]
    assert max(widest) <= columns - 2 and max(widest) > columns - 15


def test_each_command_fits_one_line_of_the_overview(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    overview = cli.parser().format_help()
    assert len(re.findall(r"^    \w+ +\w", overview, re.MULTILINE)) == len(cli.COMMANDS)
    assert not re.search(r"^ {10,}\S", overview, re.MULTILINE)


def test_the_examples_are_commands_that_parse():
    parser = cli.parser()
    for command in parser.commands.choices.values():
        lines = [line.partition(" >")[0] for line in command.epilog.splitlines()[1:]]
        examples = [line.partition("debzero ")[2].split() for line in lines]  # `srun` may stand before it
        assert examples
        for words in examples:
            assert parser.parse_args(words).command == words[0]


def test_options_may_stand_before_and_between_the_texts():
    for words in (["demo", "--json", "a", "b"], ["--json", "demo", "a", "b"], ["demo", "a", "--json", "b"]):
        options = cli.parser().parse_args(["predict", *words])
        assert (options.name, options.texts, options.json) == ("demo", ["a", "b"], True)
    assert cli.parser().parse_args(["predict", "demo"]).texts == []
    assert cli.parser().parse_args(["predict", "demo", "--json", "--", "-a"]).texts == ["-a"]


@pytest.mark.parametrize("json_wanted", [True, False])
def test_bad_input_is_one_clear_error_with_exit_code_2(tmp_path, capsys, json_wanted):
    path = str(tmp_path / "none.yml")
    assert cli.main(["check", path, *["--json"] * json_wanted]) == 2
    printed = capsys.readouterr()
    if json_wanted:
        values = json.loads(printed.out)
        assert values["ok"] is False and [problem["file"] for problem in values["problems"]] == [path]
    else:
        assert path in printed.err and "->" in printed.err and "Traceback" not in printed.err


@pytest.mark.parametrize("command", ["status", "check no-such-file.yml --json"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_no_error(command, unbuffered):
    """As with `debzero status | head`: what is left to print is lost, and nobody minds."""
    done = subprocess.run(["bash", "-c", f"set -o pipefail; '{sys.executable}' -m debzero {command} | true"], text=True,
                          capture_output=True, timeout=120,
                          env={"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (0, "")


def test_help_needs_no_library():
    """On a host without the environment the doctor runs with Debian's Python and nothing else."""
    script = ("import sys\nfrom debzero.cli import parser\nparser().format_help()\n"
              "print(sorted({'torch', 'yaml', 'numpy', 'pydantic', 'transformers'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=True,
                          env={"PYTHONPATH": str(SOURCE)})
    assert done.stdout.strip() == "[]"


# As on a host that has the package without the Python environment: Debian's PyYAML and jsonschema, and nothing else.
BARE = """import sys
for name in ("torch", "pydantic", "numpy", "hjson", "transformers", "deepspeed", "pyarrow"):
    sys.modules[name] = None
from debzero.cli import main
sys.exit(main())
"""


def bare(*arguments, **variables):
    return subprocess.run([sys.executable, "-c", BARE, *map(str, arguments)], text=True, capture_output=True,
                          env={"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin", **variables})


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"], ["check", "--schema"]])
def test_what_explains_works_without_the_environment(arguments):
    done = bare(*arguments)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


def test_a_jobs_shape_is_checked_without_the_environment(bench):
    job = bench.job()
    done = bare("check", job)
    assert done.returncode == 0 and "keys and types are right; the rest is not: " in done.stdout, done
    assert json.loads(bare("check", job, "--json").stdout)["verified"] is False
    wrong = bench.job(data__lable="x", train__global_batch="sixty-four", train__epochs=-1, output=None, model_name="x",
                      zero__stage=7)
    done = bare("check", wrong)
    shown = " ".join(done.stderr.split())
    assert done.returncode == 2 and "Traceback" not in shown
    for words in ("6 problems", "data.lable is not a known key -> did you mean label?", "output is missing",
                  "train.epochs cannot be -1 -> write for example `epochs: 3`", "train.global_batch cannot be",
                  "zero.stage cannot be 7", "model_name is not a known key"):
        assert words in shown, (words, shown)


@pytest.mark.parametrize("arguments", [["train", "x.yml"], ["plan", "x.yml", "--json"], ["check", "x.json"],
                                       ["check", "x.yml", "--fix"]])
def test_a_command_that_needs_the_environment_says_so_with_exit_code_2(arguments, tmp_path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(5)
    done = bare(*arguments, NOTIFY_SOCKET=str(tmp_path / "notify"))
    shown = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2 and "apt install debzero-runtime" in shown and "Traceback" not in shown, done
    if arguments[0] == "train":
        assert listener.recv(4096).decode().startswith("STATUS="), "systemctl status shows it"


def test_commands_in_messages_work_with_any_file_name(tmp_path, monkeypatch, capsys):
    """What is copied from a message to a shell names the file, and runs nothing of its name."""
    monkeypatch.chdir(tmp_path)
    folder = Path("my $(touch ran) jobs")
    folder.mkdir()
    (folder / "theirs.yml").write_text(json.dumps({"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO",
                                                   "num_machines": 1}))
    assert cli.main(["check", str(folder / "theirs.yml")]) == cli.main(["check", str(folder / "none.yml")]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert f"--convert '{folder}/theirs.yml'`" in printed and f"`ls '{folder}'`" in printed
    command = json_file._by_pandas("a'b $(c) \"d\".json", ', orient="split"').partition(": ")[2]
    *_, program = shlex.split(command)
    assert ast.parse(program).body[1].value.func.value.args[0].value == "a'b $(c) \"d\".json"
