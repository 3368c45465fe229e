"""What libraries log cannot pass for commands of the terminal."""
import subprocess
import sys
import textwrap

from support import SOURCE


def test_what_libraries_log_and_warn_of_is_printable():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(f"""
        import logging, sys, warnings
        sys.path.insert(0, {str(SOURCE)!r})
        early = logging.getLogger("early")
        from debzero.base.logs import make_printable
        make_printable(), make_printable()
        early.warning("failed to read %s", "a\\x1b[2Jb\\nokay")
        warnings.warn("odd file \\x1b[31m")
        try:
            open("no\\x1b[2Jfile")
        except OSError:
            early.exception("lost")
        early.warning("%d", "no number")
    """)], capture_output=True, text=True)
    assert done.returncode == 0 and "\x1b" not in done.stderr, done.stderr
    assert "failed to read a\\x1b[2Jb\n  okay" in done.stderr and "odd file \\x1b[31m" in done.stderr
    assert "no\\x1b[2Jfile" in done.stderr and "Traceback" in done.stderr


