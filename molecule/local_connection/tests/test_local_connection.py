"""The host provisioned itself over a local connection, with the Ansible of its own Python."""


def test_the_oldest_supported_ansible_did_it(host):
    version = host.check_output("/usr/local/src/debzero/.cache/controller/bin/ansible --version | head -1")
    assert "core 2.15." in version


def test_the_job_trains_to_the_end(host):
    watched = host.run("timeout 300 debzero status small --watch")
    assert watched.rc == 0, watched.stdout + host.check_output("journalctl --unit debzero@small --no-pager | tail -50")
