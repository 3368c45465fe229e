"""What no file may hold, and what the front door must: sizes, hosts, unsafe downloads, commands that exist."""
from __future__ import annotations

import re

from checkout import ROOT, commands, files, hits, load, missing, module, refuse, subcommands, targets, tasks

# Hosts that may be named: placeholders, and where Debian's copyright format is defined.
HOST = r"(?i)://(?!(?:[\w.-]+\.)?example\.(?:org|com)\b)(?!www\.debian\.org/doc/)[\w.-]*(?:debian|pypi|pythonhosted|npm)[\w.-]*"
BARE_HOST = (
    r"(?i)\b(?:(?:deb|security|ftp|archive|snapshot)\.debian|files\.pythonhosted|(?:www\.)?pypi|registry\.npmjs)\.org\b"
)

UNSAFE = {
    "a version that moves": r"state:\s*[\"']?latest\b|[:@=]latest\b",
    "a script run unread": r"\b(?:curl|wget)\b[^\n|]*\|\s*(?:sudo\s+)?(?:[\w/]*/)?(?:ba|da|z)?sh\b",
    "certificates unchecked": r"validate_certs:\s*[\"']?(?:false|no|off)\b|--no-check-certificate|--trusted-host"
                              r"|\bcurl\b[^\n]*\s(?:-k|--insecure)\b",
    "packages unsigned": r"(?i)allow[-_]?(?:unauthenticated|insecure[-_]?repositories)|trusted\s*=\s*yes",
    "errors ignored": r"ignore_errors:\s*[\"']?(?:true|yes|on)\b",
}
CODE = ("*.py", "*.yml", "*.sh", "*.j2", "ansible/*", "debian/*", "Makefile", ".ci/*")


def unchecked_downloads(content):
    """Names of tasks that download a file without saying which bytes they expect."""
    for task in tasks(content):
        kind = module(task)
        arguments = task.get(f"ansible.builtin.{kind}") or {}
        if kind == "get_url" and not arguments.get("checksum") or kind == "uri" and "dest" in arguments:
            yield task.get("name", kind)


def too_long(texts, most):
    return [f"{name}: {text.count(chr(10))} lines" for name, text in texts.items() if text.count("\n") > most]


def test_no_file_is_too_long():
    code = files("*.py", "*.yml", "*.sh", "*.j2", "ansible/*", "Makefile", without=("*.lock",))
    tests = {name: text for name, text in code.items() if "/tests/" in name}
    refuse(too_long(tests, 400) + too_long({name: text for name, text in code.items() if name not in tests}, 350))


def test_lines_of_scripts_and_settings_end_at_column_120():
    """ruff, yamllint and test_papers look at what is not here."""
    scripts = {name: text for name, text in files("*").items() if text.startswith("#!")}
    assert {"ansible/bootstrap", "ansible/bench_provision", ".ci/run"} <= scripts.keys()
    refuse(f"{hit[:hit.index(': ')]}: longer than 120 columns"
           for hit in hits("^.{121,}$", {**scripts, **files("*.sh", "*.toml", "Makefile")}))


def test_no_registry_or_mirror_is_named():
    everything = files("*")
    assert len(everything) > 50
    refuse(hits(HOST, everything) + hits(BARE_HOST, everything))


def test_nothing_is_downloaded_or_installed_unchecked():
    code = files(*CODE, without=("python/tests/*", "*.lock"))
    refuse(f"{hit} ({why})" for why, pattern in UNSAFE.items() for hit in hits(pattern, code))
    lists = files("roles/*.yml", "playbooks/*.yml", "molecule/*.yml", without=("*/meta/*", "*/vars/*", "*/defaults/*"))
    refuse(f"{name}: {task}" for name in lists for task in unchecked_downloads(load(name)))


def test_every_make_target_has_a_help_text_and_is_phony():
    makefile = (ROOT / "Makefile").read_text()
    assert {"help", "demo", "test"} <= targets(makefile).keys()
    refuse(name for name, text in targets(makefile).items() if not text)
    assert set(" ".join(re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE)).split()) == targets(makefile).keys()


def test_the_readme_is_short_and_shows_commands_that_exist():
    markdown = (ROOT / "README.md").read_text()
    assert markdown.count("\n") <= 150
    first_screen = "\n".join(markdown.split("\n")[:40])
    assert {"make demo", "make test"} <= set(commands(first_screen))
    known = targets((ROOT / "Makefile").read_text())
    refuse(name for command in commands(markdown) for name in missing(command, known, subcommands()))


def test_ci_runs_the_tests():
    assert hits(r"^(?:exec )?make .*\btest\b", files(".ci/run"))


def test_the_checks_see_what_is_wrong():
    at = "https://{}/x"
    bad = [at.format(f"{name}.org") for name in ("pypi", "deb.debian", "mirror.debian")]
    good = [at.format(host) for host in ("pypi.example.org", "mirror.example.com/debian", "www.debian.org/doc")]
    assert len(hits(HOST, {"x": "\n".join(bad + good)})) == len(bad)
    assert hits(BARE_HOST, {"x": "apt from " + "deb." + "debian.org"}) != []
    samples = {
        "a version that moves": "state: latest",
        "a script run unread": "curl -s x | sudo bash",
        "certificates unchecked": "validate_certs: no",
        "packages unsigned": "allow_unauthenticated: true",
        "errors ignored": "ignore_errors: true",
    }
    assert samples.keys() == UNSAFE.keys()
    assert [why for why, text in samples.items() if not hits(UNSAFE[why], {"x": text})] == []
    assert hits(UNSAFE["errors ignored"], {"x": 'ignore_errors: "{{ ansible_check_mode }}"'}) == []
    downloads = [
        {"name": "A", "ansible.builtin.get_url": {"url": "x"}},
        {"name": "B", "ansible.builtin.uri": {"url": "x", "dest": "y"}},
        {"name": "C", "ansible.builtin.get_url": {"url": "x", "checksum": "sha256:0"}},
    ]
    assert list(unchecked_downloads(downloads)) == ["A", "B"]
    assert too_long({"x": "\n" * 351, "y": "\n" * 350}, 350) == ["x: 351 lines"]
    assert targets("PLAY := x\na: b ## Text\nc:\n\tb\n") == {"a": "Text", "c": None}
    shown = "Type `make nothing`:\n```sh\n$ make demo  # long\nansible-playbook -i inventory/hosts.yml no.yml\n```\n"
    assert [name for command in commands(shown) for name in missing(command, {"demo"})] == ["no.yml", "make nothing"]
    shown = "```\ndebzero check x \\\n  --no-such --json | jq\nansible-playbook site.yml -e no_such=1 -e job=a\n```\n"
    assert [name for command in commands(shown) for name in missing(command, {}, subcommands())] \
        == ["debzero check --no-such", "-e no_such="]
