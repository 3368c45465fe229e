"""A trained model is exported and answers; its service does, too, for the members of its group alone."""

import json
import time

UNIT = "debzero-predict@tiny"
STATE = "/var/lib/debzero-predict"
SPOOL = f"{STATE}/spool/tiny"
ROWS = 20_000  # seconds of work, so that the kill meets it
WRITE = (f"import sys; print('number,text'); [print(str(n) + ',GNU compiler for C++ ' + str(n % 50)) "
         f"for n in range({ROWS})]")


def as_asker(host, command):
    return host.run("runuser -u asker -- sh -c %s", command)


def put(host, name, text):
    """As docs/deploy.md says."""
    done = as_asker(host, f"cd {SPOOL}/in && umask 007 && printf '{text}' >.{name} && mv .{name} {name}")
    assert done.rc == 0, done.stderr


def journal(host):
    return host.check_output(f"journalctl --unit {UNIT} --no-pager")


def wait_for(host, path, seconds=60):
    until = time.monotonic() + seconds
    while host.run(f"test -e {path}").rc:
        assert time.monotonic() < until, journal(host)[-4000:]
        time.sleep(0.5)


def test_the_export_answers(host):
    asked = host.check_output('debzero predict tiny "GNU compiler for C++" --engine onnx --json')
    assert set(json.loads(asked)) >= {"answer", "probability"}


def test_the_service_waits_in_its_sandbox(host):
    unit = host.check_output(f"systemctl show {UNIT} --property ActiveState,User,PrivateNetwork,StatusText")
    assert {"ActiveState=active", "User=debzero-predict", "PrivateNetwork=yes"} <= set(unit.splitlines())
    score = host.check_output(f"systemd-analyze security {UNIT}.service --no-pager | tail -1")
    assert float(score.split(f"{UNIT}.service: ")[1].split()[0]) <= 1.0, score


def test_a_member_s_file_is_answered(host):
    put(host, "a.csv", "text\\nGNU compiler for C++\\nX11 fonts\\n")
    wait_for(host, f"{SPOOL}/out/a.csv")
    done = as_asker(host, f"cat {SPOOL}/out/a.csv && rm {SPOOL}/out/a.csv")
    assert done.rc == 0 and done.stdout.splitlines()[0] == "text,answer,probability", done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_what_cannot_be_read_comes_back_with_a_sentence(host):
    put(host, "b.csv", "body\\nx\\n")
    as_asker(host, f"ln -s /etc/shadow {SPOOL}/in/c.csv; mkfifo {SPOOL}/in/d.csv")
    for name, reason in {"b": "it has no column", "c": "is a link", "d": "is no regular file"}.items():
        wait_for(host, f"{SPOOL}/failed/{name}.csv.txt")
        assert reason in as_asker(host, f"cat {SPOOL}/failed/{name}.csv.txt").stdout
    assert host.check_output(f"ls -A {SPOOL}/in") == ""
    assert host.check_output(f"find {SPOOL}/failed -type l -o -type p") == ""


def test_a_kill_loses_no_row(host):
    done = as_asker(host, f'cd {SPOOL}/in && umask 007 && python3 -c "{WRITE}" >.e.csv && mv .e.csv e.csv')
    assert done.rc == 0, done.stderr
    host.check_output(f"timeout 60 sh -c 'until test -e {SPOOL}/work/input/e.csv; do sleep 0.05; done' && "
                      f"systemctl kill --kill-who=all --signal=KILL {UNIT}")
    wait_for(host, f"{SPOOL}/out/e.csv", 300)
    rows = host.check_output(f"cut -d, -f1 {SPOOL}/out/e.csv").splitlines()
    assert rows[0] == "text" and len(rows) == 1 + ROWS, rows[:3]
    assert "e.csv" not in host.check_output(f"ls {SPOOL}/failed")


def test_another_release_is_taken_up_for_the_next_file(host):
    before = host.check_output(f"readlink {STATE}/models/tiny/current")
    host.check_output("rm -rf /srv/other && cp -r /var/lib/debzero/tiny/export/onnx-fp32 /srv/other && "
                      "sed -i 's/\"format\": 1,/& \"more\": 1,/' /srv/other/export.json")
    host.check_output("debzero release tiny --from /srv/other")
    after = host.check_output(f"readlink {STATE}/models/tiny/current")
    assert before != after
    put(host, "f.csv", "text\\nGNU compiler for C++\\n")
    wait_for(host, f"{SPOOL}/out/f.csv")
    assert f"the model is {STATE}/models/tiny/{after}" in journal(host)
    host.check_output("debzero release tiny")
    assert host.check_output(f"readlink {STATE}/models/tiny/current") == before


def test_it_belongs_to_root_or_the_service_and_others_reach_nothing(host):
    assert host.check_output(f"find {STATE}/models ! -user root | head") == ""
    assert host.check_output(f"find {STATE} -perm /o+w ! -type l | head") == ""
    for command in (f"touch {SPOOL}/in/x.csv", f"ls {SPOOL}/out", f"cat {STATE}/models/tiny/current/config.json"):
        assert host.run(f"runuser -u nobody -- {command}").rc != 0, command
    for command in (f"ls {SPOOL}/work", f"touch {SPOOL}/x", f"rm -r {SPOOL}/work", f"mv {SPOOL}/in {SPOOL}/x",
                    f"cat {STATE}/models/tiny/current/config.json", "ls /var/lib/debzero"):
        assert as_asker(host, command).rc != 0, command


def test_a_stop_is_clean(host):
    host.check_output(f"systemctl stop {UNIT}")
    assert host.check_output(f"systemctl show {UNIT} --property Result --value") == "success"
    assert "stopped, after" in journal(host)
    host.check_output(f"systemctl start {UNIT}")
