"""What other users of the host can reach of a run: nothing that lets them in."""
import os
import stat

import psutil
import pytest
from running import end, ranks_of, start, step_of, wait_for

from debzero.train import peers


def listening(processes):
    """The addresses, as the kernel writes them, where any of the processes listens."""
    inodes = set()
    for process in processes:
        for handle in os.listdir(f"/proc/{process.pid}/fd"):
            try:
                inodes.add(os.readlink(f"/proc/{process.pid}/fd/{handle}").partition("[")[2].rstrip("]"))
            except OSError:
                continue
    return [row.local for row in peers.sockets() if row.inode in inodes and row.state == peers.LISTENING]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A run of two ranks, stopped in the middle: its listeners, and the mode of the folder where its ranks meet."""
    from support import Bench

    bench = Bench(tmp_path_factory.mktemp("seen"))
    process = start(bench, bench.job(train__epochs=2000))
    wait_for(process, lambda: step_of(bench, "job") > 2)
    processes = [psutil.Process(process.pid), *ranks_of(process)]
    found = {"listening": listening(processes),
             "folders": [(path, path.stat()) for path in bench.output().glob(".ranks.*")],
             "left": lambda: list(bench.output().glob(".ranks.*"))}
    process.terminate()
    found["text"] = end(process)
    return found


def test_no_rank_listens_where_another_host_reaches_it(seen):
    assert all(peers._is_loopback(address) for address in seen["listening"]), seen


def test_ranks_meet_in_a_folder_of_their_users_own(seen):
    (_, info), = seen["folders"]
    assert stat.S_IMODE(info.st_mode) == 0o700 and info.st_uid == os.geteuid()
    assert not seen["left"]()
