"""preflight must leave the host as it found it."""


def test_leaves_nothing_behind(host):
    left = [name for name in host.file("/tmp").listdir() if not name.startswith("systemd-private")]
    assert left == []
    assert host.run("dpkg --list g++").rc != 0
    assert not host.file("/opt/debzero").exists


def test_leaves_apt_as_it_was(host):
    assert set(host.file("/var/lib/apt/lists").listdir()) <= {"lock", "partial"}
    assert host.file("/var/cache/apt").listdir() == ["archives"]
