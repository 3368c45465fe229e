"""The package must have been built here; what is in it, python/tests/package judges."""


def test_the_package_installs(host):
    packages = host.check_output("ls /var/cache/debzero/deb/*.deb").split()
    assert len(packages) == 1
    assert host.run(f"apt-get install --simulate {packages[0]}").rc == 0
