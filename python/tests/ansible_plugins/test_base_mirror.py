"""A mirror of your own takes no security updates away by accident, and no address leaves apt unreadable."""
from __future__ import annotations

import re

import pytest
import yaml
from controller import ROOT, play

MIRROR, SECURITY = "http://mirror.example.org/debian", "http://mirror.example.org/debian-security"


def configure(**variables):
    """The role's settings for apt, in check mode, with these variables."""
    return {"name": "Configure apt", "ansible.builtin.include_role": {"name": "base", "tasks_from": "configure_apt"},
            "vars": {"base_apt_mirror": MIRROR, **variables}}


def test_a_mirror_needs_its_security_archive_or_a_word_that_there_is_none(tmp_path):
    hosts = {"both": configure(base_apt_security_mirror=SECURITY), "none": configure(base_apt_security_mirror="none"),
             "alone,cut": configure(base_apt_security_mirror="{{ 'mirror.example.org' * (inventory_hostname == 'cut')"
                                                            " }}")}
    plays = [{"name": name, "hosts": name, "connection": "local", "gather_facts": False, "tasks": [task],
              "vars": {"ansible_python_interpreter": "/usr/bin/python3"}} for name, task in hosts.items()]
    (tmp_path / "try.yml").write_text(yaml.safe_dump(plays))
    done = play("-i", ",".join(hosts), "--check", "--diff", tmp_path / "try.yml")
    both, none, refused = (part.partition("PLAY RECAP")[0] for part in done.stdout.split("PLAY [")[1:])
    assert f"+deb {MIRROR} bullseye main" in both and f"+deb {SECURITY} bullseye-security main" in both, done.stdout
    assert f"+deb {MIRROR} bullseye main" in none and "+deb none" not in none and "-security main" not in none
    assert "alone: base_apt_mirror is set and base_apt_security_mirror is not" in " ".join(refused.split())
    assert "cut: base_apt_security_mirror must be an address such as" in " ".join(refused.split())
    assert "+deb" not in refused
    assert done.returncode != 0


ADDRESS = yaml.safe_load((ROOT / "roles/base/vars/main.yml").read_text())["__base_address"]


@pytest.mark.parametrize("address", ["http://apt.example.org/debzero", "file:///srv/x",
                                     "file:/srv/x", "tor+https://apt.example.org/@x", "http://apt.example.org"])
def test_addresses_that_apt_reads(address):
    assert re.match(ADDRESS, address)


@pytest.mark.parametrize("address", [
    "apt.example.org", "http://user:secret@apt.example.org/", "https://user@apt.example.org", "http://a/ b", "http:",
    "http://a/\nx", "http://a/x\n", "http://a/[x]", 'http://a/"x', "http://a/#x", "/srv/x"])
def test_addresses_that_leave_apt_without_any_list_or_show_a_password(address):
    assert not re.match(ADDRESS, address)
