"""What became of the hosts, after the recap: each one that was left out, where, and why.

A host that fails or cannot be reached is dropped, and the play continues with the others.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: fleet
type: aggregate
short_description: names the hosts that were left out, with the cause
description: Prints nothing where every host has succeeded.
"""
FAILURE = Path(__file__).resolve().parents[1] / "filter/failure.py"  # plugins cannot import each other by name


def _load_cause() -> Any:
    spec = spec_from_file_location("failure", FAILURE)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.cause


cause = _load_cause()


def summary(done: Sequence[str], lost: Mapping[str, tuple[str, str]], waiting: Sequence[str]) -> list[str]:
    """The lines. `lost`: what each of these hosts came to, and why; `waiting`: those that the last play did not reach,
    for it takes some hosts at a time."""
    count = len(done) + len(lost) + len(waiting)
    lines = [f"{len(done)} of {count} hosts succeeded" + (f": {', '.join(done)}" if done else "")]
    for host, (what, why) in lost.items():
        lines += [f"{host} {what}:", *(f"  {line}" for line in why.splitlines())]
    lines += [f"not begun: {', '.join(waiting)}"] if waiting else []
    # Where no host is done, none has to be left out; what failed may be the run itself, on behalf of all its hosts.
    limit = f" with --limit {','.join([*lost, *waiting])}" if done else ""
    return [*lines, f"After the repair, run the same again{limit}"]


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "fleet"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.hosts: set[str] = set()
        self.play = ""
        self.expected: set[str] = set()  # in the play that runs
        self.begun: set[str] = set()
        # The last one of each host ended it: those before were rescued or ignored.
        self.causes: dict[str, tuple[str, str]] = {}

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        if not host.implicit:  # localhost, where no inventory names it
            self.hosts.add(host.get_name())
            self.begun.add(host.get_name())

    def v2_playbook_on_play_start(self, play: Any) -> None:
        if play.get_name() != self.play:  # each batch of a play with `serial` starts it again
            self.play, self.begun = play.get_name(), set()
        inventory = play.get_variable_manager()._inventory
        self.expected = {host.get_name() for host in inventory.get_hosts(play.hosts, ignore_restrictions=True)}

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            self.causes[result._host.get_name()] = (f'failed at "{result._task.get_name()}"', cause(result._result))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self.causes[result._host.get_name()] = ("could not be reached", cause(result._result))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        hosts = sorted(self.hosts)
        lost = {host: self.causes.get(host, ("failed", "the output above has the reason")) for host in hosts
                if stats.dark.get(host) or stats.failures.get(host)}
        if lost:
            waiting = [host for host in hosts if host in self.expected and host not in {*self.begun, *lost}]
            self._display.banner("HOSTS THAT WERE LEFT OUT")
            for line in summary([host for host in hosts if host not in {*lost, *waiting}], lost, waiting):
                self._display.display(line)
