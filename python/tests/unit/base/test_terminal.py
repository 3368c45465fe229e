"""What root starts as another user gets neither root's terminal nor the keys that are typed there."""
import fcntl
import os
import pty
import re
import signal
import sys
import termios
import time
from contextlib import suppress

import psutil
import pytest
from others import OTHER, give, in_child, public_folder

from debzero.base import privileges, terminal

NEW_LINE = b"\n"


class Shell:
    """Root's shell at a terminal, with one command in the foreground. What the shell itself has to say stands in
    brackets."""

    def __init__(self, command) -> None:
        self.text = ""
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            with suppress(BaseException):
                self._run(command)
            os._exit(1)

    def _run(self, command) -> None:
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            signal.alarm(90)  # a terminal that it has got would never end
            os.tcsetpgrp(0, os.getpid())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(os.dup2(n, n), "w" if n else "r") for n in (0, 1, 2))
            code = 1
            try:
                code = command() or 0
            except KeyboardInterrupt:
                code = 130
            finally:
                sys.stdout.flush()
                os._exit(code)
        while True:
            _, status = os.waitpid(child, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                break
            os.tcsetpgrp(0, os.getpgrp())
            time.sleep(0.1)  # a signal takes its time
            states = {process.status() for process in psutil.Process(child).children()}
            os.write(1, f"[{' '.join(states)}]".encode())
            os.tcsetpgrp(0, child)
            os.killpg(child, signal.SIGCONT)
        os.tcsetpgrp(0, os.getpgrp())
        quiet = termios.tcgetattr(0)
        quiet[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(0, termios.TCSANOW, quiet)
        os.set_blocking(0, False)
        with suppress(BlockingIOError):
            os.write(1, b"[typed " + os.read(0, 100) + b"]")
        os.write(1, f"[{os.waitstatus_to_exitcode(status)}]".encode())
        os._exit(0)

    def until(self, text: str = "\0") -> str:
        """What is on the screen when `text` appears, or when the shell ends."""
        with suppress(OSError):
            while text not in self.text:
                self.text += os.read(self.screen, 1000).decode(errors="replace")
        if text == "\0":
            os.waitpid(self.pid, 0)
            os.close(self.screen)
        return self.text

    def key(self, key: bytes) -> None:
        os.write(self.screen, key)


@pytest.fixture
def become():
    """Becomes the other user as a command of root's does."""
    with public_folder() as folder:
        (folder / "others").mkdir()
        give(folder / "others")
        yield lambda: privileges.become_owner(folder / "others")


def attack() -> None:
    for number in range(3):
        for code in (termios.TIOCSTI, termios.TIOCSCTTY):
            with suppress(OSError):
                fcntl.ioctl(number, code, NEW_LINE)
    with suppress(OSError):
        fcntl.ioctl(os.open("/dev/tty", os.O_RDWR), termios.TIOCSTI, NEW_LINE)


def test_the_other_user_neither_types_nor_reads_at_roots_terminal(become):
    def command():
        roots = os.ttyname(0)
        spare = os.dup(0)
        become()
        attack()
        reached = {os.ttyname(number) for number in (0, 1, 2, spare) if _is_terminal(number)}
        with suppress(OSError):
            reached.add(os.ttyname(os.open("/dev/tty", os.O_RDWR)))
        print(os.getuid(), os.getsid(0) == os.getpid(), roots in reached, repr(sys.stdin.read()), end="")

    assert Shell(command).until() == f"{OTHER.pw_uid} True False ''[0]"


def _is_terminal(number) -> bool:
    try:
        return os.isatty(number) and bool(os.ttyname(number))
    except OSError:
        return False


def test_where_the_output_is_no_terminal_the_session_is_left_all_the_same(become, tmp_path):
    def command():
        for number in (0, 1, 2):
            os.dup2(os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT), number)
        become()
        attack()
        print(os.getsid(0) == os.getpid())

    assert Shell(command).until() == "[0]"
    assert (tmp_path / "log").read_text() == "True\n"


def test_without_a_terminal_the_process_stays_the_same():
    def stay():
        os.setsid()
        for number in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        return terminal.leave()

    assert in_child(stay) == "None"


@pytest.mark.parametrize(("end", "code"), [
    (lambda: None, 0), (lambda: 3, 3), (lambda: os.kill(os.getpid(), signal.SIGKILL), 137), (lambda: 1 // 0, 1)])
def test_the_command_ends_as_its_other_process_does(become, end, code):
    def command():
        become()
        return end()

    assert Shell(command).until().endswith(f"[{code}]")


@pytest.mark.parametrize(("key", "code"), [(b"\x03", 130), (b"\x1c", 131)])
def test_keys_that_end_a_command_reach_its_process(become, key, code):
    def command():
        become()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores both
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        print("begun", flush=True)
        time.sleep(60)

    shell = Shell(command)
    shell.until("begun")
    shell.key(key)
    assert shell.until().endswith(f"[{code}]")


def test_ctrl_z_stops_both_and_fg_continues_both(become):
    def command():
        become()
        print("begun", flush=True)
        time.sleep(0.5)
        print("done")

    shell = Shell(command)
    shell.until("begun")
    shell.key(b"\x1a")
    assert re.search(r"begun.*\[stopped\].*done.*\[0\]", shell.until(), re.DOTALL)


def test_a_closed_terminal_and_a_killed_parent_end_the_other_process(become, tmp_path):
    def command():
        become()
        os.write(number, str(os.getpid()).encode())
        print("begun", flush=True)
        time.sleep(60)

    for end in ("close", "kill"):
        number = os.open(tmp_path / end, os.O_WRONLY | os.O_CREAT)
        shell = Shell(command)
        os.close(number)
        shell.until("begun")
        other = psutil.Process(int((tmp_path / end).read_text()))
        if end == "kill":
            other.parent().kill()
            assert shell.until().endswith("[-9]")
        else:
            os.close(shell.screen)
            os.waitpid(shell.pid, 0)
        assert not other.is_running() or other.wait(10) is None, end


def test_progress_is_shown_and_other_orders_to_the_terminal_are_not(become):
    def command():
        become()
        print("\r\033[K", end="\033", flush=True)
        time.sleep(0.1)
        print("[Kstep 1\tä", os.get_terminal_size(1).columns, sys.stdout.isatty(), end="\033]0;title\a\033", flush=True)

    shell = Shell(command)
    fcntl.ioctl(shell.screen, termios.TIOCSWINSZ, b"\x18\0\x4d\0" + bytes(4))
    assert shell.until() == "\r\033[K\033[Kstep 1\tä 77 True\\x1b]0;title\\x07\\x1b[0]"


def test_what_is_left_over_does_not_hold_the_terminal(become):
    def command():
        become()
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        print("done", end="")

    began = time.monotonic()
    assert Shell(command).until() == "done[0]" and time.monotonic() - began < 10
