"""The package must have been built here; what is in it, python/tests/package judges. Installed, it does what it can
without its environment, and no step of its life loses what is an administrator's or leaves what is not."""

JUDGED = "/var/cache/debzero/judged"
DEB = "/tmp/debzero.deb"  # purging empties the other folder
JOBS = "/etc/debzero/jobs"
# The package as it was when the jobs were conffiles.
OLDER = f"""set -eu
rm -rf /tmp/older
dpkg-deb --raw-extract {DEB} /tmp/older
cd /tmp/older
mkdir -p etc/debzero/jobs
cp usr/share/debzero/examples/*.yml etc/debzero/jobs/
find etc -type f -printf '/%p\\n' >DEBIAN/conffiles
rm DEBIAN/*inst DEBIAN/*rm
sed -i 's/^Version: .*/Version: 0.1.0/' DEBIAN/control
dpkg-deb -Zgzip --build /tmp/older /tmp/older.deb
"""
# What `systemctl enable` and `systemctl edit` make, and an administrator.
OWN = """set -eu
systemctl enable debzero@mrpc
mkdir -p /etc/systemd/system/debzero@mrpc.service.d /opt/debzero/venv
echo '[Service]' >/etc/systemd/system/debzero@mrpc.service.d/override.conf
echo HF_TOKEN=x >/etc/default/debzero-mrpc
install -d -o debzero /var/lib/debzero/mrpc
"""


def dpkg(host, *words):
    done = host.run(f"DEBIAN_FRONTEND=noninteractive dpkg {' '.join(words)} </dev/null")
    assert done.rc == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def jobs(host):
    """{file: its last line}; a downgrade puts the package's own version of a changed one beside it, as *.dpkg-dist."""
    return {name: host.check_output(f"tail --lines=1 {JOBS}/{name}")
            for name in host.check_output(f"ls {JOBS}").split() if not name.endswith(".dpkg-dist")}


def test_its_own_tests_pass(host):
    """debian/tests, on this container."""
    host.check_output("apt-get install --yes --no-install-recommends autopkgtest")
    host.check_output(f"cp {JUDGED}/debzero_*_all.deb {DEB}; rm -rf /tmp/source; "
                      f"dpkg-source --extract {JUDGED}/*.dsc /tmp/source")
    done = host.run("autopkgtest --ignore-restrictions=isolation-container --no-built-binaries "
                    f"{DEB} /tmp/source/ -- null")
    assert done.rc == 0 and "smoke                PASS" in done.stdout + done.stderr, done.stdout + done.stderr


def test_no_step_of_its_life_loses_a_job_or_leaves_what_is_its_own(host):
    host.run("umount /var/cache/debzero/uv")  # the tests' downloads
    dpkg(host, "--purge", "debzero")
    host.check_output(OLDER)
    dpkg(host, "--install", "/tmp/older.deb")
    host.check_output(f"echo '# mine' >>{JOBS}/mrpc.yml; rm {JOBS}/t5-base.yml")
    before = jobs(host)
    assert sorted(before) == ["demo.yml", "gpt2-medium.yml", "mrpc.yml"] and before["mrpc.yml"] == "# mine"
    for package in (DEB, "/tmp/older.deb", DEB, DEB):  # upgrade, downgrade, upgrade, the same again
        dpkg(host, "--force-confold", "--force-confdef", "--install", package)
        assert {**jobs(host), "t5-base.yml": ""} == {**before, "t5-base.yml": ""}, package  # it is new to the downgrade
    assert host.check_output("dpkg-query --show --showformat '${Conffiles}' debzero").strip() == ""

    host.check_output(OWN)
    dpkg(host, "--remove", "debzero")
    assert jobs(host)["mrpc.yml"] == "# mine" and host.run("ls -d /usr/share/debzero /usr/bin/debzero").stdout == ""
    said = dpkg(host, "--purge", "debzero")
    assert "keeping the trained models and their answers in /var/lib/debzero" in said
    assert "keeping the Python environment in /opt/debzero" in said
    left = host.check_output("find / -xdev -name '*debzero*' -not -path '/tmp/*' -not -path '/proc/*' | sort").split()
    others = ("/var/cache/apt/", "/var/cache/man/", "/root/")
    assert [path for path in left if not path.startswith(others)] == ["/opt/debzero", "/var/lib/debzero"]
