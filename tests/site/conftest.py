"""The site, built once for all workers, and served to the browser."""

import contextlib
import functools
import http.server
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the built site. Notebooks are shown as they are written: another test runs them."""
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    built, said = shared / "site", shared / "site.txt"
    with FileLock(shared / "site.lock"):
        if not said.exists():
            before = time.monotonic()
            run = subprocess.run(
                [
                    *(sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-b", "html"),
                    *("-D", "nb_execution_mode=off", "-d", shared / "doctrees", ROOT / "docs", built),
                ],
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            said.write_text(f"{run.returncode}\n{time.monotonic() - before:.1f} s\n{run.stdout}{run.stderr}")
    code, _, text = said.read_text().split("\n", 2)
    assert code == "0", f"the site does not build without a warning:\n{text}"
    return built


@pytest.fixture(scope="session")
def address(site):
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with contextlib.closing(server.socket):
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
    thread.join()
