"""base must leave a host that compiles, trusts its authorities and still reaches its archives."""

import pytest


def test_compiles_against_python_and_libaio(host):
    source = r"#include <Python.h>\n#include <libaio.h>\nint main(void) { io_context_t c = 0; return io_setup(1, &c); }"
    build = host.run(f"printf '{source}' | gcc -x c - $(python3-config --includes) -laio -o /tmp/aio && /tmp/aio")
    assert build.rc == 0, build.stderr


@pytest.mark.parametrize("tool", ["cmake --version", "git --version", "ninja --version", "numactl --show"])
def test_tools_run(host, tool):
    assert host.run(tool).rc == 0


def test_your_authorities_are_in_the_bundle(host):
    folder = host.file("/usr/local/share/ca-certificates")
    for name in folder.listdir():
        subject = host.check_output(f"openssl x509 -noout -fingerprint -in {folder.path}/{name}")
        bundle = host.check_output(
            "csplit -s -z -f /tmp/ca- -n 4 /etc/ssl/certs/ca-certificates.crt '/BEGIN CERT/' '{*}';"
            "for f in /tmp/ca-*; do openssl x509 -noout -fingerprint -in $f; done; rm /tmp/ca-*")
        assert subject in bundle, f"{name} is not trusted"


def test_apt_still_reaches_its_archives(host):
    assert host.run("apt-get update").rc == 0
