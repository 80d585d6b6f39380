"""The table of faults fits the code; `scripts/faults.py` puts them into it."""

from __future__ import annotations

import ast
import importlib.util
import sys

import pytest
from support import ROOT


@pytest.fixture(scope="module")
def faults():
    spec = importlib.util.spec_from_file_location("faults", ROOT / "scripts" / "faults.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["faults"]


def test_each_named_fault_stands_once_in_its_file_and_still_is_python(faults):
    assert len(faults.FAULTS) >= 20
    assert len({fault.name for fault in faults.FAULTS}) == len(faults.FAULTS)
    for fault in faults.FAULTS:
        before = (faults.PACKAGE / fault.file).read_bytes()
        assert fault.broken() != before
        ast.parse(fault.broken())


def test_drawn_faults_are_the_same_for_a_seed_and_change_something_that_runs(faults):
    found = faults.drawn(40, 0)
    assert found == faults.drawn(40, 0) != faults.drawn(40, 1)
    assert {fault.room for fault in found} == set(faults.ROOMS)
    for fault in found:
        before = (faults.PACKAGE / fault.file).read_bytes()
        assert ast.dump(ast.parse(fault.broken())) != ast.dump(ast.parse(before))
