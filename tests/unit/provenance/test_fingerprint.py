"""The hash of the code: which changes it sees, and how they are named."""

from pathlib import Path

import pytest
import torch

import morel_core
from orchestrator.provenance import fingerprint
from orchestrator.provenance.fingerprint import code_changes, code_hash, code_parts


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of nothing but two files stands in for `morel_core`."""
    root = tmp_path / "morel_core"
    (root / "losses").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "losses" / "at.py").write_text("x = 1\n")
    monkeypatch.setattr(fingerprint.morel_core, "__file__", str(root / "__init__.py"))
    code_parts.cache_clear()
    yield root
    code_parts.cache_clear()


def test_every_source_of_the_method_counts():
    files = {p.relative_to(Path(morel_core.__file__).parents[1]).as_posix()
             for p in Path(morel_core.__file__).parent.rglob("*.py")}  # fmt: skip
    assert set(code_parts()) == files | {"torch"}
    assert code_hash() == code_hash()
    assert len(code_hash()) == 16


def test_a_changed_file_changes_the_hash(package):
    before, parts = code_hash(), dict(code_parts())
    (package / "losses" / "at.py").write_text("x = 2\n")
    code_parts.cache_clear()
    assert code_hash() != before
    assert code_changes(parts, code_parts()) == "morel_core/losses/at.py has changed"


def test_torch_counts_by_its_version_not_by_its_build(package, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.14.1+cpu")
    cpu = code_hash()
    for version, same in (("2.14.1+cu130", True), ("2.15.0+cpu", False)):
        monkeypatch.setattr(torch, "__version__", version)
        code_parts.cache_clear()
        assert (code_hash() == cpu) is same


def test_changes_are_named_torch_first_and_not_all():
    before = {f"morel_core/{letter}.py": "0" for letter in "abcdefg"} | {"torch": "2.14.1"}
    assert code_changes(before, before) == ""
    now = {**dict.fromkeys(before, "1"), "torch": "2.15.0", "morel_core/new.py": "1"}
    assert code_changes(before, now) == (
        "torch 2.14.1 is now 2.15.0, morel_core/a.py has changed, morel_core/b.py has changed, "
        "morel_core/c.py has changed, morel_core/d.py has changed and 4 more"
    )
    assert code_changes({"x.py": "0"}, {"y.py": "1"}) == "x.py is gone, y.py is new"
