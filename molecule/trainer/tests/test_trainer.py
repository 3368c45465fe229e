"""A job must really be trained by its unit, as its own user, in its sandbox."""

import json


def test_the_unit_trains_to_the_end(host):
    watched = host.run("timeout 600 debzero status tiny --watch")
    assert watched.rc == 0, watched.stdout + host.check_output("journalctl --unit debzero@tiny --no-pager | tail -50")
    # The report is there a moment before the last process is gone.
    host.run("timeout 60 sh -c "
             "'until systemctl show debzero@tiny --property SubState | grep -q exited; do sleep 1; done'")
    unit = host.check_output("systemctl show debzero@tiny --property ActiveState,SubState,Result,User,StatusText")
    assert {"ActiveState=active", "SubState=exited", "Result=success", "User=debzero"} <= set(unit.splitlines())


def test_the_model_learned_with_its_optimizer_offloaded(host):
    report = json.loads(host.check_output("debzero status tiny --json"))["report"]
    assert report["accuracy"] > 2 * report["majority_accuracy"] > 0
    assert report["world_size"] == 2 and report["zero_stage"] == 3


def test_the_sandbox_holds(host):
    score = host.check_output("systemd-analyze security debzero@tiny.service --no-pager | tail -1")
    assert float(score.split("debzero@tiny.service: ")[1].split()[0]) <= 1.8, score


def test_jobs_run_where_no_folder_is_taken_for_a_model(host):
    folder = host.check_output("systemctl show debzero@tiny.service --property WorkingDirectory --value")
    assert host.check_output(f"stat --format '%U %a' {folder}; ls --almost-all {folder}") == "root 555"


def test_what_it_wrote_is_its_own(host):
    assert host.check_output("find /var/lib/debzero ! -user debzero | head") == ""
    assert host.check_output("find /var/lib/debzero /etc/debzero -perm -o+w ! -type l | head") == ""


def test_no_other_user_reads_it_or_blocks_a_job(host):
    assert host.check_output("stat --format %a /var/lib/debzero") == "750"
    assert host.check_output("find /var/lib/debzero/tiny -perm /o+rwx ! -name '*.prom' ! -type l | head") == ""
    for command in ("cat /var/lib/debzero/tiny/report.json", "flock --shared /var/lib/debzero/tiny/.lock true"):
        assert host.run(f"runuser -u nobody -- {command}").rc != 0, command
    host.check_output("id someone || useradd --groups debzero someone")
    host.check_output("runuser -u someone -- cat /var/lib/debzero/tiny/report.json")


def test_the_host_is_examined_before_the_job_starts(host):
    assert "This host can train" in host.check_output("journalctl --unit debzero@tiny --no-pager")
