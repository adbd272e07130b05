"""Importing does nothing, the method needs torch alone, and nothing in it unpickles."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import morel_core

ROOT = Path(morel_core.__file__).parents[1]

# Fails at the first thing an import must not do; subprocesses and sockets are seen as they happen.
WATCHED = """
import importlib, json, pkgutil, sys

SIDE_EFFECTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request",
                "sqlite3.connect")
seen = []

def asks_for_ipv6():
    # urllib3 tries once whether this machine has IPv6, without sending anything.
    frame = sys._getframe(2)
    while frame is not None and "urllib3" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None

def watch(event, arguments):
    if event in SIDE_EFFECTS and not (event == "socket.bind" and asks_for_ipv6()):
        seen.append([event, repr(arguments)[:200]])

sys.argv = ["host-program", "--no-such-option", "positional", "key=value"]
sys.addaudithook(watch)
names = []
for package in sys.stdin.read().split():
    module = importlib.import_module(package)
    names.append(package)
    for found in pkgutil.walk_packages(module.__path__, package + "."):
        if not found.name.endswith("__main__"):  # that one is the command itself
            importlib.import_module(found.name)
            names.append(found.name)
ray = sys.modules.get("ray")
print(json.dumps({
    "names": names,
    "argv": sys.argv,
    "effects": seen,
    "modules": [name for name in sys.modules if "." not in name],
    "ray": bool(ray and ray.is_initialized()),
    "submodules": [name for name in sys.modules if name.startswith("morel_core")],
}))
"""


def import_all(packages, folder):
    done = subprocess.run(
        [sys.executable, "-c", WATCHED],
        input=" ".join(packages),
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)  # and so nothing else was printed
    assert report["argv"] == ["host-program", "--no-such-option", "positional", "key=value"]
    assert report["effects"] == []
    assert not report["ray"]
    return report


def test_the_method_needs_torch_alone(tmp_path):
    report = import_all(["morel_core"], tmp_path)
    modules = set(report["modules"])
    assert "torch" in modules
    foreign = {
        "ray", "mlflow", "omegaconf", "optuna", "rich", "sklearn", "scipy", "pandas",
        "torchvision", "timm", "pyautoattack", "orchestrator",
    }  # fmt: skip
    assert not modules & foreign
    assert {"morel_core.trainer", "morel_core.data.digits", "morel_core.models.external"} <= set(
        report["names"]
    )
    assert list(tmp_path.iterdir()) == []


def test_importing_the_orchestrator_does_nothing(tmp_path):
    report = import_all(["orchestrator"], tmp_path)
    assert {
        "orchestrator.cli",
        "orchestrator.training.worker",
        "orchestrator.tracking.journal",
    } <= set(report["names"])
    assert list(tmp_path.iterdir()) == []


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", sources("morel_core"), ids=lambda path: path.stem)
def test_nothing_is_unpickled(path):
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in (
            node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")]
        )
    }
    assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for name, keywords in calls(path):
        assert keywords.get("weights_only", "True") == "True", name
        if name == "torch.load":
            assert keywords["weights_only"] == "True"
        assert name not in ("eval", "exec", "torch.hub.load", "torch.jit.load")
        if name.endswith("load") and name.startswith(("np.", "numpy.")):
            assert keywords.get("allow_pickle", "False") == "False"


@pytest.mark.parametrize("path", sources("orchestrator"), ids=lambda path: path.stem)
def test_the_orchestrator_unpickles_no_artifact_either(path):
    for name, keywords in calls(path):
        assert keywords.get("weights_only", "True") == "True", name
        assert name not in ("torch.load", "torch.hub.load", "torch.jit.load", "eval", "exec")
        assert not name.startswith(("cloudpickle.load", "dill.load", "joblib.load"))


def test_the_scan_finds_the_one_torch_load_there_is():
    """Lest the scan pass because it looks at nothing."""
    found = [
        path.stem
        for path in sources("morel_core")
        for name, _ in calls(path)
        if name == "torch.load"
    ]
    assert found == ["checkpoint"]
