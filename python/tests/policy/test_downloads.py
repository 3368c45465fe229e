"""Nothing is downloaded without a checksum or a signature, or kept where another user could exchange it."""
from __future__ import annotations

import re

import yaml
from checkout import files, hits, module, refuse, tasks, without_comments

# By hand, as the tutorial has it: that is what the benchmark measures.
SHIPPED = files("roles/*", "playbooks/*", "molecule/*", "ansible/*", "debian/*", "Makefile", "site.yml",
                without=("*.md", "*/tests/*", "ansible/bench_provision", "*.lock"))
UNSIGNED = (r"\b(?:curl|wget|urlretrieve)\b|trusted=yes|--?allow-?(?:unauthenticated|insecure)|--force-yes"
            r"|--trusted-host|git clone|apt-key")
# What every user may write to. A folder made there by `tempfile` or mktemp has a name that nobody knows beforehand.
SHARED = r"(?<![\w*}])/(?:var/)?tmp\b|/dev/shm\b"


def shared_paths(name, task):
    """Arguments of a task that name a place where every user may write."""
    for key, value in task.items():
        if "." in key and module(task) != "tempfile" and re.search(SHARED, without_comments(str(value))):
            yield f"{name}: {task['name']}: keep it in a folder that only root may write to: {value}"


def careless(name, task):
    """What makes a task's download unsafe."""
    kind = module(task)
    options = next((value for key, value in task.items() if key.endswith(f".{kind}")), None)
    if not isinstance(options, dict):
        options = {}
    if kind == "get_url" and "checksum" not in options:
        yield f"{name}: {task['name']}: get_url without checksum"
    if kind == "uri" and "dest" in options or kind == "unarchive" and "://" in str(options.get("src")):
        yield f"{name}: {task['name']}: a download that no checksum guards"
    if kind == "apt" and ("://" in str(options.get("deb")) or {"allow_unauthenticated", "force"} & set(options)):
        yield f"{name}: {task['name']}: apt without signatures"
    argv = options.get("argv")
    words = list(map(str, argv)) if isinstance(argv, list) else str(options.get("cmd", "")).split()
    installs = {"pip", "install"} <= {word.rpartition("/")[2] for word in words}
    if installs and not {"--require-hashes", "--offline"} & set(words):
        yield f"{name}: {task['name']}: pip without --require-hashes"


def bare_pip(texts):
    """pip that downloads without hashes, in scripts: a command may continue on the next line after a backslash."""
    joined = {name: re.sub(r"\\\n", "  ", text) for name, text in texts.items() if not name.endswith(".yml")}
    return [hit for hit in hits(r"^.*\bpip (?:install|sync|download) .*$", joined) if "--require-hashes" not in hit]


def test_no_task_downloads_without_a_checksum_or_a_signature():
    lists = {name: yaml.safe_load(text) for name, text in SHIPPED.items()
             if name.endswith(".yml") and "/meta/" not in name}
    refuse(finding for name, content in lists.items() for task in tasks(content) for finding in careless(name, task))


def shipped_tasks():
    """(file, task) of roles and plays; Molecule's own prepare containers that have no other user."""
    for name, text in SHIPPED.items():
        if name.endswith(".yml") and "/meta/" not in name and not name.startswith("molecule/"):
            yield from ((name, task) for task in tasks(yaml.safe_load(text)))


def test_no_task_keeps_anything_where_every_user_may_write():
    refuse(finding for name, task in shipped_tasks() for finding in shared_paths(name, task))


def test_no_script_does_either():
    scripts = {name: without_comments(text) for name, text in SHIPPED.items()
               if not name.endswith((".yml", ".j2")) and not name.startswith(("molecule/", "debian/"))}
    assert len(scripts) > 10
    refuse(hits(SHARED, scripts))


def test_no_script_downloads_without_a_checksum():
    texts = {name: without_comments(text) for name, text in SHIPPED.items()}
    refuse(hits(UNSIGNED, texts) + bare_pip(texts))


def test_the_checks_see_what_is_wrong():
    def found(**task):
        arguments = {f"ansible.builtin.{key}": value for key, value in task.items()}
        return len(list(careless("x.yml", {"name": "Get", **arguments})))

    assert found(get_url={"url": "u", "dest": "d"}) == 1 and found(get_url={"url": "u", "checksum": "sha256:0"}) == 0
    assert found(uri={"url": "u", "dest": "d"}) == 1 and found(apt={"deb": "http://host/a.deb"}) == 1
    assert found(command={"argv": ["uv", "pip", "install", "torch"]}) == 1
    assert found(command={"cmd": "pip install --require-hashes -r lock"}) == 0
    assert hits(UNSIGNED, {"a": "curl x | sh"}) and bare_pip({"a": "pip install \\\n torch"})
    assert not bare_pip({"a": "pip install \\\n --require-hashes -r lock"})

    def shared(**task):
        arguments = {f"ansible.builtin.{key}": value for key, value in task.items()}
        return len(list(shared_paths("x.yml", {"name": "Keep", **arguments})))

    assert shared(copy={"src": "a", "dest": "/var/tmp/a.deb"}) == shared(apt={"deb": "/tmp/{{ name }}.deb"}) == 1
    assert shared(command={"argv": ["dpkg", "-i", "/tmp/a"]}) == shared(shell={"cmd": "cp a /dev/shm"}) == 1
    assert shared(tempfile={"path": "/var/tmp"}) == shared(copy={"src": "a", "dest": "{{ work.path }}/a"}) == 0
