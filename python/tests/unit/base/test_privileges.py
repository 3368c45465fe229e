"""Root does nothing as root in a folder where another user may have put something."""
import errno
import json
import os
import pwd
import struct

import pytest
from others import OTHER, give, in_child, public_folder

from debzero.base import privileges


@pytest.fixture
def public():
    with public_folder() as folder:
        yield folder


def user_for(*paths):
    """Whom root becomes for `paths`."""
    def become():
        privileges.become_owner(*paths)
        with pytest.raises(PermissionError):  # for good
            os.setuid(0 if os.getuid() else 2**31)
        return pwd.getpwuid(os.geteuid()).pw_name, os.getuid(), os.getgid(), os.getgroups(), os.environ["HOME"]

    return in_child(become)


@pytest.fixture
def other(public):
    return give_new(public, "other")


def give_new(folder, name):
    (folder / name).mkdir()
    return give(folder / name)


IS_OTHER = str((OTHER.pw_name, OTHER.pw_uid, OTHER.pw_gid, os.getgrouplist(OTHER.pw_name, OTHER.pw_gid), OTHER.pw_dir))


def test_root_becomes_the_owner_of_what_it_works_in_or_of_what_is_above(public, other):
    (other / "roots").mkdir()  # the other user could replace it at any moment
    (public / "link").symlink_to(other)
    (public / "a").mkdir()
    (public / "a" / "relative").symlink_to("../link/roots")
    for path in (other, other / "not" / "yet", other / "roots" / "out", public / "link", public / "link" / "out",
                 public / "a" / "relative", public / "a" / ".." / "other" / "x"):
        assert user_for(path) == IS_OTHER, path
    assert user_for(public, other) == IS_OTHER, "any of several"


def test_the_other_users_link_says_whose_folder_it_is(public):
    (public / "link").symlink_to("/etc")
    os.lchown(public / "link", OTHER.pw_uid, OTHER.pw_gid)
    assert user_for(public / "link" / "debzero") == IS_OTHER


def test_what_is_roots_alone_stays_roots(public, tmp_path):
    for path in (public, public / "out", public / "a" / "b", tmp_path / "out"):
        assert not privileges.is_anothers(path)
    give_new(tmp_path, "far")  # pytest's folder is root's: nobody else can come here
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert not privileges.is_anothers(tmp_path / "far") and not privileges.is_anothers(tmp_path / "open")
    (public / "loop").symlink_to("loop")
    assert not privileges.is_anothers(public / "loop")


@pytest.mark.parametrize(("mode", "below", "refused"), [
    (0o777, "out", True), (0o777, "", True), (0o1777, "out", False), (0o1777, "", True), (0o755, "out", False)])
def test_a_folder_that_others_may_write_to_is_refused_unless_it_is_sticky(public, mode, below, refused):
    shared = public / "shared"
    shared.mkdir()
    shared.chmod(mode)
    answer = in_child(lambda: privileges.become_owner(shared / below))
    assert answer.startswith("UserError") is refused, answer
    if refused:
        assert "others may write to it" in answer and "runuser --pty -u" in answer


def test_in_a_sticky_folder_the_owner_of_what_is_there_counts(public):
    shared = public / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    assert user_for(give_new(shared, "out")) == IS_OTHER
    assert in_child(lambda: privileges.require_own(shared / "out")).startswith("UserError")  # made a moment later


def test_a_group_that_may_write_is_as_good_as_anybody(public):
    os.chown(public, 0, OTHER.pw_gid)
    public.chmod(0o775)
    assert "others may write" in in_child(lambda: privileges.become_owner(public / "out"))


def acl(path, kind, *, user=7, number=OTHER.pw_uid, mask=7, everybody=5):
    """Give `path` an access control list with the other user on it."""
    nobody = 0xffffffff
    entries = [(1, 7, nobody), (2, user, number), (4, 5, nobody), (8, 7, 0), (16, mask, nobody),
               (32, everybody, nobody)]
    content = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, f"system.posix_acl_{kind}", content)
    except OSError:
        pytest.skip("this file system has no access control lists")


@pytest.mark.parametrize(("kind", "given", "refused"), [
    ("access", {}, True), ("access", {"user": 5}, False), ("access", {"mask": 5}, False),
    ("access", {"number": 0}, False), ("access", {"user": 5, "everybody": 7}, True), ("default", {}, True),
    ("default", {"user": 5}, False), ("default", {"user": 5, "everybody": 7}, True)])
@pytest.mark.parametrize("below", ["", "out"])
def test_whom_an_access_control_list_lets_write_is_a_stranger(public, kind, given, refused, below):
    acl(public, kind, **given)
    answer = in_child(lambda: privileges.become_owner(public / below))
    assert answer.startswith("UserError") is refused, answer
    if refused:
        assert "setfacl" in answer and ("default access control list" in answer) is (kind == "default")


def test_a_folder_is_not_roots_alone_if_a_list_lets_others_enter(public):
    give_new(public, "other")
    public.chmod(0o700)
    assert not privileges.is_anothers(public / "other")
    acl(public, "access", user=1, everybody=0)
    assert privileges.is_anothers(public / "other")


def test_where_a_default_list_is_passed_on_the_way_only_what_is_there_counts(public):
    (public / "out").mkdir()
    acl(public, "default")
    assert not privileges.is_anothers(public / "out")


def test_a_file_that_others_may_write_to_is_no_ones(public):
    file = public / "results.json"
    file.touch()
    assert privileges.distrust(file) == ""
    file.chmod(0o666)
    assert "others may write to it" in privileges.distrust(file)


def test_a_second_name_may_be_in_reach_where_the_first_is_not(public):
    give_new(public, "other")
    (public / "other" / "file").touch()
    os.link(public / "other" / "file", public / "private")
    give(public / "other")
    public.chmod(0o700)
    assert privileges.is_anothers(public / "private")
    (public / "other" / "file").unlink()
    assert not privileges.is_anothers(public / "private")


def test_what_root_may_not_look_at_is_refused(public, monkeypatch):
    """As another user's FUSE: what is there once it is gone?"""
    look = os.lstat

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return look(path)

    monkeypatch.setattr(os, "lstat", closed)
    assert "cannot be looked at" in privileges.distrust(public / "closed" / "out")


def test_a_user_without_an_account_is_refused(public):
    os.chown(public, 54321, 54321)
    refused = in_child(lambda: privileges.become_owner(public))
    assert "the user 54321's, who has no account here" in refused and "`useradd --uid 54321 NAME`" in refused


def test_acting_as_the_owner_ends_with_the_block(public, other):
    def act():
        before = os.getresuid(), os.getresgid(), os.getgroups()
        with privileges.acting_as_owner(other):
            (other / "mine").touch()
            within = os.geteuid()
        after = os.getresuid(), os.getresgid(), os.getgroups()
        return before == after, within == OTHER.pw_uid == (other / "mine").stat().st_uid

    assert in_child(act) == "(True, True)"


def test_variables_that_name_folders_of_roots_are_not_kept(public, other):
    def become():
        os.environ.update(TMPDIR=str(public), HF_HOME=str(other), XDG_CACHE_HOME="/nowhere")
        privileges.become_owner(other)
        return [os.environ.get(name) for name in ("TMPDIR", "HF_HOME", "XDG_CACHE_HOME")]

    assert in_child(become) == str([None, str(other), None])


@pytest.mark.parametrize("paths", [1, 0])
def test_no_variable_leads_root_to_what_others_may_change(public, other, paths):
    """Caches with compiled operators, settings, programs: whatever libraries there are."""
    (public / "link").symlink_to(other)
    (public / "open").mkdir()
    (public / "open").chmod(0o777)
    given = {"HOME": str(other), "TORCH_EXTENSIONS_DIR": f"{other}/.cache", "MPLCONFIGDIR": f"{public}/link/mpl",
             "TRITON_PTXAS_PATH": f"{other}/ptxas", "OPENSSL_CONF": f"{public}/open/ssl.cnf",
             "HF_HOME": f"{public}/models", "HTTPS_PROXY": "http://user:word@proxy:80/", "OMP_NUM_THREADS": "2",
             "PATH": f"{other}/bin:/usr/bin:{public}/open:/bin", "DEBZERO_TEXTFILE_DIR": str(other)}

    def stay():
        os.environ.update(given)
        privileges.become_owner(*[public] * paths)
        return json.dumps({name: os.environ[name] for name in given if name in os.environ})

    kept = {name: given[name] for name in ("HF_HOME", "HTTPS_PROXY", "OMP_NUM_THREADS", "DEBZERO_TEXTFILE_DIR")}
    assert json.loads(in_child(stay)) == {**kept, "HOME": pwd.getpwuid(0).pw_dir, "PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize(("before", "after"), [(0o022, 0o027), (0o077, 0o077), (0, 0o027)])
def test_the_umask_only_gets_tighter(before, after):
    def tighten():
        os.umask(before)
        privileges.tighten_umask()
        return os.umask(0)

    assert in_child(tighten) == str(after)
