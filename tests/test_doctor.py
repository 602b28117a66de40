"""The doctor tells the truth: what it calls compiled is compiled, and what is missing has a remedy."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sgdkern import doctor
from sgdkern.ops import LIBRARIES, OPS
from sgdkern.ops.registry import Library


def test_every_operation_is_listed_on_every_device():
    diagnosis = doctor.diagnose()
    assert diagnosis.operations.keys() == OPS.keys()
    for name, devices in diagnosis.operations.items():
        for device, kind in devices.items():
            library = LIBRARIES[device]
            assert kind in ("compiled", "reference")
            assert (kind == "reference") or library.reason is None, name


def test_what_is_in_use_is_a_file():
    for target, state in doctor.diagnose().libraries.items():
        assert state != "in use" or LIBRARIES[target].path.is_file()


def test_is_json():
    diagnosis = doctor.diagnose().as_dict()
    assert json.loads(json.dumps(diagnosis))["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(("compiler", "text"), [("no-such-compiler", "Install a C++ compiler"), ("sh", "make build")])
def test_a_missing_library_has_a_remedy(monkeypatch, compiler, text):
    monkeypatch.setitem(doctor.LIBRARIES, "cpu", Library(Path("cpu.so"), "not built"))
    monkeypatch.setenv("CXX", compiler)
    assert any("not built" in remedy and text in remedy for remedy in doctor.diagnose().remedies)


def test_nothing_missing_means_no_remedy(monkeypatch):
    for target in doctor.LIBRARIES:
        monkeypatch.setitem(doctor.LIBRARIES, target, Library(Path(f"{target}.so"), None))
    diagnosis = doctor.diagnose()
    assert diagnosis.remedies == ()
    lines = str(diagnosis).splitlines()
    assert ["cpu.so", "in", "use"] in [line.split() for line in lines]
    assert len({len(name) for name, _ in (re.match(r"(\S+ {2,})(\S)", line).groups() for line in lines)}) == 1


def test_prints_itself():
    done = subprocess.run([sys.executable, "-m", "sgdkern.doctor"], capture_output=True, text=True, check=True)
    assert "gram" in done.stdout
    assert done.stderr == ""
