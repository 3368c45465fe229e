"""What the launcher tells systemd."""
from pathlib import Path

import pytest

from debzero.train import launch


@pytest.mark.parametrize(("code", "told"), [(0, []), (1, []), (2, []), (143, ["READY=1"]), (130, ["READY=1"])])
def test_a_run_that_is_stopped_before_it_trains_is_not_started_again(monkeypatch, code, told):
    """systemd takes a unit that ends before it is ready for failed, whatever its exit code; another host may have been
    asked to stop, so that no `systemctl stop` is behind it."""
    said = []
    monkeypatch.setattr(launch.systemd, "notify", lambda *lines: said.extend(lines))
    monkeypatch.setattr(launch, "_with_all_hosts", lambda *_: code)
    assert launch.train(None, Path("job.yml"), False) == code and said == told
