"""preflight must have left the host as it found it."""


def test_leaves_nothing_behind(host):
    assert host.file("/tmp").listdir() == []
    assert host.run("dpkg --list g++ numactl").rc != 0
    assert not host.file("/opt/debzero").exists
