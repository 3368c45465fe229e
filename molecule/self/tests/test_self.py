"""The host provisioned itself with the Ansible of its own Python."""


def test_the_oldest_supported_ansible_did_it(host):
    version = host.check_output("/root/debzero/.cache/controller/bin/ansible --version | head -1")
    assert "core 2.15." in version


def test_the_job_runs(host):
    assert host.check_output("systemctl is-active debzero@demo") == "active"
