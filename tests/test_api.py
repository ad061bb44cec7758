"""The public functions: each is found by its name, and importing the package waits for none of them."""

import subprocess
import sys
from importlib import import_module

import pytest

import mamba_bio_audio as mba


@pytest.mark.parametrize("name", mba._FUNCTIONS)
def test_a_public_function_is_that_of_its_module(name):
    function = getattr(mba, name)
    assert function is getattr(import_module(f"mamba_bio_audio.{mba._FUNCTIONS[name]}"), name)
    assert function.__name__ == name
    assert name in dir(mba)
    assert name in mba.__all__


def test_there_is_nothing_else():
    with pytest.raises(AttributeError, match="'nope'"):
        mba.nope  # noqa: B018


def test_the_package_imports_no_torch():
    code = (
        "import sys, mamba_bio_audio as mba; dir(mba); assert 'torch' not in sys.modules; "
        "mba.load; assert 'torch' in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
