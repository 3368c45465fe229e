"""`srun debzero train` over both hosts, with Debian's own Slurm, and `mpirun` on one of them: the same weights."""

import os

import pytest
import testinfra

# Bullseye's security archive has ended, and may list what it no longer has.
PACKAGES = "openmpi-bin slurmctld slurmd slurm-client munge/bullseye libmunge2/bullseye"
FOLDER = "/srv/jobs"
SLURM = """ClusterName=test
SlurmctldHost={controller}
AuthType=auth/munge
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SwitchType=switch/none
MpiDefault=none
StateSaveLocation=/var/lib/slurm-state
SlurmdSpoolDir=/var/lib/slurm-spool
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@pytest.fixture(scope="module")
def hosts(request):
    name = request.config.option.hosts.rsplit("/", 1)[-1]
    return [testinfra.get_host(f"podman://{one}") for one in (name, f"{name}-second")]


def write(host, file, content, owner, mode):
    host.check_output("printf %%s %s >%s && chown %s %s && chmod %s %s", content, file, owner, file, mode, file)


@pytest.fixture(scope="module", autouse=True)
def slurm(hosts):
    """Node 1 and node 2, and on each of them two jobs with their keys."""
    addresses = [one.check_output("ip -brief address show eth1").split()[2].split("/")[0] for one in hosts]
    names = [one.backend.name for one in hosts]
    nodes = "\n".join(f"NodeName=node{number} NodeHostname={name} NodeAddr={address} CPUs=2"
                      for number, (name, address) in enumerate(zip(names, addresses), 1))
    settings = SLURM.format(controller=f"{names[0]}({addresses[0]})", nodes=nodes)
    key = os.urandom(32).hex()
    job = hosts[0].check_output("sed 's/^ranks: .*/ranks: 1/' /etc/debzero/jobs/alone.yml")
    for one in hosts:
        one.check_output("systemctl stop 'debzero@*'")  # what the tests of the fleet upgraded last
        one.check_output("apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes "
                         f"--no-install-recommends {PACKAGES}")
        one.check_output(f"mkdir -p {FOLDER} /etc/slurm /var/lib/slurm-state /var/lib/slurm-spool")
        for name in ("srun", "mpirun"):
            write(one, f"{FOLDER}/{name}.yml", job.replace("/alone", f"/{name}"), "root:root", "644")
        write(one, f"{FOLDER}/srun.key", key, "debzero:debzero", "600")
        write(one, "/etc/slurm/slurm.conf", settings, "root:root", "644")
        write(one, "/etc/munge/munge.key", key, "munge:munge", "400")
        one.check_output("printf '%s node1\\n%s node2\\n' >>/etc/hosts && systemctl restart munge", *addresses)
    hosts[0].check_output("slurmctld")
    for number, one in enumerate(hosts, 1):
        one.check_output(f"slurmd -N node{number}")
    yield
    for one in hosts:
        one.run("pkill -x slurmd; pkill -x slurmctld")


def train(host, launcher, name):
    """As the jobs' user, with one thread a rank, as in the hosts' units."""
    done = host.run(f"OMP_NUM_THREADS=1 timeout 900 runuser -u debzero -- {launcher} /usr/bin/debzero train "
                    f"{FOLDER}/{name}.yml")
    assert done.rc == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def weights(host, name):
    return host.check_output(f"sha256sum /var/lib/debzero/{name}/model/model.safetensors").split()[0]


def test_srun_trains_over_both_hosts(hosts):
    text = train(hosts[0], "srun --nodes=2 --ntasks-per-node=1", "srun")
    assert "x 2 ranks" in text
    assert weights(hosts[0], "srun") == weights(hosts[1], "srun") == weights(hosts[0], "alone")


def test_mpirun_trains_two_ranks_on_one_host(hosts):
    train(hosts[0], "mpirun --oversubscribe -np 2", "mpirun")
    assert weights(hosts[0], "mpirun") == weights(hosts[0], "alone")
