import os
import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows can't fork")
@pytest.mark.parametrize("count", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_runs_killed_at_random_moments_equal_an_uninterrupted_run(count):
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill_runs", str(count)], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{count} runs killed")
