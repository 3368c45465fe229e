"""debzero-bundle on tiny bundles: whatever is changed is seen and named, and nothing unsafe is ever written."""
from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from bundles import FILES, PROGRAM, fill, gpg, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def said(tool, file: Path, keys: Path, key: str = "right") -> list[str]:
    return [f"{one['path']}: {one['problem']}" for one in tool.verify(file, keys / f"{key}.gpg")["problems"]]


def members(file: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(file) as archive:
        return [(info, archive.extractfile(info).read()) for info in archive.getmembers()]


def write(file: Path, rows: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as archive:
        for info, data in rows:
            archive.addfile(info, io.BytesIO(data))
    return file


def test_a_whole_bundle_is_verified_and_unpacked(tool, bundle, keys, tmp_path):
    assert said(tool, bundle, keys) == []
    assert [info.name for info, _ in members(bundle)] == ["manifest.json", "manifest.json.sig", *FILES]
    done = run("verify", bundle, "--key", keys / "right.gpg")
    assert done.returncode == 0 and "is whole: 4 files" in done.stdout and "debzero 1.0-1" in done.stdout
    done = run("unpack", bundle, tmp_path / "out", "--key", keys / "right.gpg", umask=0o077)
    assert done.returncode == 0, done.stderr
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES
    # Readable for apt's own user, writable for nobody else.
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*")} == {0o755, 0o644}
    # Again, and a part alone: it takes the place of the first.
    assert run("unpack", bundle, tmp_path / "out", "--only", "models", "--key", keys / "right.gpg").returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", "manifest.json.sig", "models"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_same_files_make_the_same_bytes(tool, bundle, tmp_path):
    tool.pack(bundle.parent / "tree", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == bundle.read_bytes()
    assert not (tmp_path / "again.tar.part").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_byte_anywhere_is_seen(tool, bundle, keys, tmp_path_factory, data):
    text = bytearray(bundle.read_bytes())
    where = data.draw(st.integers(0, len(text) - 1))
    text[where] ^= 1 << data.draw(st.integers(0, 7))
    changed = bundle.parent / "changed.tar"
    changed.write_bytes(text)
    assert tool.verify(changed, keys / "right.gpg")["problems"]
    folder = bundle.parent / "unpacked"
    with pytest.raises(tool.RefusedError):
        tool.unpack(changed, folder, keys / "right.gpg", [])
    assert not folder.exists() and not list(bundle.parent.glob(".unpacked*"))


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_bundle_that_ends_early_or_late_is_seen(tool, bundle, keys, data):
    text = bundle.read_bytes()
    changed = bundle.parent / "cut.tar"
    kept = data.draw(st.integers(0, len(text) - 1))
    changed.write_bytes(data.draw(st.sampled_from([text[:kept], text + text[:kept + 1], text + b"\0"])))
    assert tool.verify(changed, keys / "right.gpg")["problems"]


def test_all_that_is_wrong_is_named_at_once(tool, bundle, keys, tmp_path):
    rows = members(bundle)
    first, nvidia, model, sbom = rows[2:]
    link = tarfile.TarInfo("models/tiny/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
    up, root, extra = (tarfile.TarInfo(name) for name in ("../up", "/etc/cron.d/x", "debian/extra"))
    extra.size = 3
    damaged = (model[0], b"[]")
    file = write(tmp_path / "b.tar", [*rows[:2], first, first, damaged, (link, b""), (up, b""), (root, b""),
                                      (extra, b"abc"), sbom])
    assert said(tool, file, keys) == [
        "debian/pool/a_1_all.deb: it is there twice",
        "models/tiny/config.json: it is damaged: its SHA-256 is not that of the manifest",
        "models/tiny/link: it is not in the manifest", "../up: its name is unsafe", "/etc/cron.d/x: its name is unsafe",
        "debian/extra: it is not in the manifest",
        f"{nvidia[0].name}: it is missing, or its header is damaged"]
    done = run("unpack", file, tmp_path / "out", "--key", keys / "right.gpg")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["b.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_file_is_refused(tool, bundle, keys, tmp_path, kind):
    rows = members(bundle)
    info = rows[2][0]
    info.type, info.size, info.linkname = kind, 0, "/etc/passwd"
    (told,) = said(tool, write(tmp_path / "b.tar", [*rows[:2], (info, b""), *rows[3:]]), keys)
    assert told == "debian/pool/a_1_all.deb: it is a link, a folder or a device, and must be a file"


def test_whose_signature_counts_is_said_by_the_keyring(tool, bundle, keys, tmp_path):
    (told,) = said(tool, bundle, keys, "other")
    assert told.startswith("manifest.json.sig: the key ") and "not in" in told
    (told,) = said(tool, bundle, keys, "nowhere")
    assert told.endswith("nowhere.gpg: the keyring is not there")
    tool.pack(fill(tmp_path / "tree", FILES, keys, "expired"), tmp_path / "old.tar")
    (told,) = said(tool, tmp_path / "old.tar", keys, "expired")
    assert "has expired" in told
    rows = members(bundle)
    info = rows[1][0]
    info.size = 4
    (told,) = said(tool, write(tmp_path / "b.tar", [rows[0], (info, b"none"), *rows[2:]]), keys)
    assert told.startswith("manifest.json.sig: there is no valid signature")
    (told,) = said(tool, write(tmp_path / "b.tar", [rows[0], *rows[2:]]), keys)
    assert told.endswith("manifest.json.sig is not where it belongs in a bundle")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a//b", "a/./b", "manifest.json", "debian", "a\nb", "x" * 120])
def test_even_a_signed_manifest_leads_nowhere_else(tool, keys, tmp_path, name):
    rows = [{"path": path, "size": 1, "sha256": "0" * 64} for path in ("debian/a", name)]
    text = json.dumps({"format": 1, "files": rows}).encode()
    with pytest.raises(tool.RefusedError):
        tool.entries_of(text)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"format": 2}', b'{"format": 1, "files": [1]}', b"\xff",
                                  b'{"format": 1, "files": [{"path": "a", "size": -1, "sha256": ""}]}', b"[" * 99999])
def test_a_manifest_that_is_none_is_refused(tool, text):
    with pytest.raises(tool.RefusedError):
        tool.entries_of(text)


def test_a_file_of_more_than_eight_gigabytes_has_a_header_that_tar_reads(tool):
    for size in (0, (1 << 33) - 1, 1 << 33, 1 << 40):
        info = tarfile.TarInfo.frombuf(tool.header("models/large/model.safetensors", size), "utf-8", "strict")
        assert (info.name, info.size, info.mode, info.uid) == ("models/large/model.safetensors", size, 0o644, 0)


def test_what_is_no_bundle_is_one_sentence(tool, keys, tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("x" * 5000)
    for name in ("empty", "text", "missing", "."):
        done = run("verify", tmp_path / name, "--key", keys / "right.gpg")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert str(tmp_path / name) in done.stderr and "Errno" not in done.stderr
    done = run("verify", tmp_path / "text", "--json", "--key", keys / "right.gpg")
    assert json.loads(done.stdout)["problems"][0]["fix"].startswith("see that it is a bundle")
    assert "examples:" in run("--help").stdout and "exit codes" in run("verify", "--help").stdout


@pytest.mark.parametrize("row", [{"size": 1 << 100}, {"size": True}, {"sha256": None}, {"sha256": 5}, {"path": []},
                                 {"path": "manifest.json/x"}, {"path": "\ud800"}])
def test_a_row_of_any_kind_is_no_traceback(tool, row):
    text = json.dumps({"format": 1, "files": [{"path": "a", "size": 1, "sha256": "0" * 64, **row}]}).encode()
    with pytest.raises(tool.RefusedError):
        tool.entries_of(text)


def test_blocks_between_the_files_are_seen(tool, bundle, keys, tmp_path):
    """GNU tar extracts such a member, and Python's reader takes it for none: its device numbers are garbage."""
    text = bundle.read_bytes()
    block = bytearray(tool.header("evil", 0))
    block[329:336] = b"zzzzzzz"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    at = text.index(tool.header("models/tiny/config.json", 2))
    (tmp_path / "b.tar").write_bytes(text[:at] + bytes(block) * 20 + text[at:])  # a whole record more
    (problem,) = said(tool, tmp_path / "b.tar", keys)
    assert "there is something between its files" in problem


def test_a_flood_of_what_is_wrong_ends(tool, bundle, keys, tmp_path):
    text = bundle.read_bytes()
    at = text.index(tool.header("models/tiny/config.json", 2))
    flood = b"".join(tool.header(f"extra-{number}", 0) for number in range(300))
    (tmp_path / "b.tar").write_bytes(text[:at] + flood + text[at:])
    problems = said(tool, tmp_path / "b.tar", keys)
    assert len(problems) == tool.MOST + 1 and "more is wrong" in problems[-1]


def test_an_armored_keyring_is_named(tool, bundle, keys, tmp_path):
    gpg(keys / "home", "--armor", "--output", tmp_path / "right.gpg", "--export", "right")
    (problem,) = said(tool, bundle, tmp_path)
    assert "is armored" in problem


def test_one_good_signature_does_not_hide_another(tool, bundle, keys, tmp_path):
    rows = members(bundle)
    (tmp_path / "text").write_bytes(rows[0][1])
    gpg(keys / "home", "--local-user", "other", "--output", tmp_path / "other", "--detach-sign", tmp_path / "text")
    gpg(keys / "home", "--local-user", "right", "--output", tmp_path / "inline", "--sign", tmp_path / "text")
    for more in (rows[1][1] + (tmp_path / "other").read_bytes(), (tmp_path / "inline").read_bytes()):
        with pytest.raises(tool.RefusedError):
            tool.signer(rows[0][1], more, keys / "right.gpg")


def test_an_output_that_is_closed_or_full_is_no_traceback(bundle, keys):
    words = f"{sys.executable} {PROGRAM} verify {bundle} --key {keys / 'right.gpg'}"
    for outputs, code, lines in (("2>&-", 0, 0), (">/dev/full", 1, 1)):
        done = subprocess.run(["sh", "-c", f"{words} {outputs}"], capture_output=True, text=True,
                              env={**os.environ, "PYTHONUNBUFFERED": ""})
        assert (done.returncode, done.stderr.count("\n")) == (code, lines), done.stderr


def test_a_manifest_that_is_too_large_is_said_so(tool, bundle, keys, tmp_path):
    """By who packs it, before gigabytes are written, and by who reads it."""
    limit = tool.LIMITS[tool.MANIFEST]
    with (tmp_path / "b.tar").open("wb") as made:
        made.write(tool.header(tool.MANIFEST, limit + 1))
        made.truncate(limit + 10240)
    (told,) = said(tool, tmp_path / "b.tar", keys)
    assert told == f"{tmp_path}/b.tar: manifest.json has 67.1 MB, and this program reads 67.1 MB at most"
    tree = fill(tmp_path / "tree", FILES, keys)
    with (tree / "manifest.json").open("ab") as grown:
        grown.write(b" " * limit)
    with pytest.raises(SystemExit, match="manifest.json has 67.1 MB"):
        tool.pack(tree, tmp_path / "large.tar")
    assert not list(tmp_path.glob("large.tar*"))


def test_a_manifest_that_takes_all_memory_is_one_sentence(tool, bundle, keys, tmp_path):
    """Of any signature: it is read to say which files are damaged."""
    text = b'{"format": 1, "files": [' + b"[]," * (8 << 20) + b"[]]}"
    rows = members(bundle)
    rows[0][0].size = len(text)
    file = write(tmp_path / "b.tar", [(rows[0][0], text), *rows[1:]])
    limited = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20)); " \
              f"sys.argv[0] = {str(PROGRAM)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", limited, "verify", file, "--key", keys / "right.gpg"], text=True,
                          capture_output=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "more memory than" in done.stderr, done.stderr
