"""What a machine may lack: skipped for want of it, unless KULLBACK_HERE says that it is here (.ci/run sets it)."""

import os
import shutil

import pytest


def lacking(what, reason):
    """Skip for want of it; fail where KULLBACK_HERE says that it is here."""
    if what in os.environ.get("KULLBACK_HERE", "").split():
        pytest.fail(f"{reason}; KULLBACK_HERE names {what}", pytrace=False)
    pytest.skip(reason)


def browser_path():
    """Chromium's, or a skip."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        lacking("browser", "needs a browser (Debian: apt-get install chromium)")
    return found
