"""Worker processes end with the program that started them, however it ends, and say nothing of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from causalmad.evaluation.workers import workers

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from causalmad.evaluation.workers import workers

def work(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which whoever runs the tests may have turned off
    with workers(2) as pool:
        for future in [pool.submit(work, sys.argv[1] + name) for name in "ab"]:
            future.result()
"""


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.skipif(os.name == "nt", reason="signals of this kind are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_they_end_with_their_program(tmp_path, number):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    words = [sys.executable, str(file), str(tmp_path / "pid-")]
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}, text=True, **pipes) as program:
        pids = [tmp_path / "pid-a", tmp_path / "pid-b"]
        until(lambda: all(each.exists() and each.read_text() for each in pids))
        # Ctrl-C in a terminal goes to all of them; other signals to the program alone.
        (os.killpg if number == signal.SIGINT else os.kill)(program.pid, number)
        try:
            out, said = program.communicate(timeout=60)  # pipes close when the last one has ended
        finally:
            program.kill()  # a test that fails ends too
    until(lambda: not any(alive(int(each.read_text())) for each in pids))
    assert out == "" and program.returncode != 0
    assert said.count("Traceback") == (1 if number == signal.SIGINT else 0)  # the program's own, which it may catch


def add(one, other):
    return one + other


def test_they_work_and_an_error_of_ours_ends_them():
    with workers(1) as pool:
        assert pool.submit(add, 2, 3).result(timeout=60) == 5
    with pytest.raises(ZeroDivisionError), workers(1) as pool:
        pool.submit(add, 2, 3).result(timeout=60)
        job = pool.submit(time.sleep, 600)
        _ = 1 / 0
    assert job.exception(timeout=60) is not None  # nobody waited for its end
