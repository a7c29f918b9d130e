"""Rules that hold for every file, read from the syntax tree: what may import what, and what is never written.

The floors are ``envs < mbrl < agents < experiments``: an import only ever points down, inside functions as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"envs": 1, "mbrl": 2, "agents": 3, "experiments": 4}
NEVER_IMPORTED = {"tests", "docker", "docs"}
# Environments stand on little: these anywhere, and what a checker or an extra needs only where it is used.
ENVS_ANYWHERE = {"gymnasium", "mujoco", "numpy", "pygame", "torch"}
ENVS_IN_FUNCTIONS = {"dm_control", "shimmy", "stable_baselines3"}
# Reading a file with one of these can run code that the file's author chose.
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
# Messages between a run's own processes are no files: Ray pickles them, and this module a part of them.
MAY_PICKLE = Path("mbrl/distributed/parcel.py")
UNSAFE_KEYWORDS = {("weights_only", False), ("allow_pickle", True)}
UNSAFE_METHODS = {"load_memmap", "recover_environment", "unsafe_load"}
LONGEST_FUNCTION, LONGEST_FILE = 60, 500

SOURCES = sorted(path.relative_to(ROOT) for name in FLOORS for path in (ROOT / name).rglob("*.py"))


def violations(source: str, path: Path) -> list[str]:
    """Everything in ``source`` that a rule forbids at ``path`` (relative to the repository), as ``path:line: why``."""
    found = list(_Rules(path).check(ast.parse(source)))
    if source.count("\n") > LONGEST_FILE:
        found.append((LONGEST_FILE + 1, f"file of more than {LONGEST_FILE} lines"))
    return [f"{path}:{line}: {why}" for line, why in sorted(found)]


class _Rules:
    """One file's walk; ``check`` yields ``(line, why)``."""

    def __init__(self, path: Path) -> None:
        self.path, self.package = path, path.parts[0]

    def check(self, node: ast.AST, lazy: bool = False, caught: bool = False) -> Iterator[tuple[int, str]]:
        """``lazy``: inside a function; ``caught``: inside ``with warnings.catch_warnings()``."""
        for why in self._of_node(node, lazy, caught):
            yield getattr(node, "lineno", 1), why
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(node)
        caught = caught or (isinstance(node, ast.With) and "catch_warnings" in ast.dump(node.items[0]))
        for child in ast.iter_child_nodes(node):
            yield from self.check(child, lazy, caught)

    def _of_node(self, node: ast.AST, lazy: bool, caught: bool) -> Iterator[str]:
        for module in imported(node, self.path):
            yield from self._of_import(module.split(".")[0], lazy)
        if isinstance(node, ast.Call):
            yield from self._of_call(node, caught)
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield "bare except: name the exceptions"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LONGEST_FUNCTION:
                yield f"{node.name} has {lines} lines, more than {LONGEST_FUNCTION}"

    def _of_import(self, top: str, lazy: bool) -> Iterator[str]:
        if top in NEVER_IMPORTED or FLOORS.get(top, 0) > FLOORS[self.package]:
            yield f"{self.package} imports {top}: imports only point down"
        elif self.package == "envs" and top not in {"envs", *ENVS_ANYWHERE, *sys.stdlib_module_names}:
            if top not in ENVS_IN_FUNCTIONS:
                yield f"envs imports {top}: environments stand on {', '.join(sorted(ENVS_ANYWHERE))}"
            elif not lazy:
                yield f"envs imports {top} at module level: import it in the function that needs it"
        if self.package != "envs" and top in UNSAFE_MODULES and self.path != MAY_PICKLE:
            yield f"imports {top}: files hold tensors and JSON only"

    def _of_call(self, call: ast.Call, caught: bool) -> Iterator[str]:
        name = _called(call)
        if name == "print" and isinstance(call.func, ast.Name) and self.package != "experiments":
            yield "print in library code: only experiments talks to the terminal"
        if name == "cuda" and isinstance(call.func, ast.Attribute):
            yield ".cuda(): take a device"
        if name in {"filterwarnings", "simplefilter"} and not caught:
            yield f"{name} outside `with warnings.catch_warnings()` silences everybody's warnings"
        if name in UNSAFE_METHODS:
            yield f"{name} can run code from a file"
        for keyword in call.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if (keyword.arg, value) in UNSAFE_KEYWORDS:
                yield f"{keyword.arg}={value} can run code from a file"


def imported(node: ast.AST, path: Path) -> list[str]:
    """Absolute names of the modules that one statement or ``import_module("...")`` call imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = path.parts[: len(path.parts) - node.level] if node.level else ()
        if base or node.module:
            return [".".join((*base, node.module or ""))]
        return [alias.name for alias in node.names]  # `from .. import x` out of the package: x is the package
    if isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"} and node.args:
        first = node.args[0]
        return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
    return []


def _called(call: ast.Call) -> str:
    return getattr(call.func, "attr", None) or getattr(call.func, "id", "")


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def test_every_package_has_sources() -> None:
    assert {path.parts[0] for path in SOURCES} == set(FLOORS)


def test_every_folder_is_a_regular_package() -> None:
    """A folder without ``__init__.py`` would give way to any package of its name that is installed."""
    assert not [str(path.parent) for path in SOURCES if not (ROOT / path.parent / "__init__.py").is_file()]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_file_keeps_the_rules(path: Path) -> None:
    found = violations((ROOT / path).read_text(encoding="utf-8"), path)
    assert not found, "\n".join(["", *found])


PLANTED = {
    "up": ("envs/x.py", "import mbrl.data", "imports only point down"),
    "up, from": ("mbrl/models/x.py", "from agents.base import Agent", "imports only point down"),
    "up, in a function": ("agents/x.py", "def f():\n    import experiments.cli", "imports only point down"),
    "up, in a class": ("mbrl/x.py", "class A:\n    from agents import mpc", "imports only point down"),
    "up, for types": ("mbrl/x.py", "if TYPE_CHECKING:\n    from agents import mpc", "imports only point down"),
    "up, by name": ("mbrl/x.py", "importlib.import_module('agents.mpc')", "imports only point down"),
    "up, relative": ("mbrl/models/x.py", "from ... import agents", "imports only point down"),
    "tests": ("experiments/x.py", "from tests.envs import fakes", "imports only point down"),
    "second name": ("envs/x.py", "import torch, mbrl", "imports only point down"),
    "heavy environment": ("envs/x.py", "def f():\n    import ray", "environments stand on"),
    "eager checker": ("envs/x.py", "from stable_baselines3.common import env_checker", "at module level"),
    "bare except": ("agents/x.py", "try:\n    f()\nexcept:\n    g()", "bare except"),
    "cuda": ("mbrl/x.py", "x = model.cuda()", ".cuda()"),
    "silence, module": ("mbrl/x.py", "import warnings\nwarnings.filterwarnings('ignore')", "silences"),
    "silence, function": ("mbrl/x.py", "def f():\n    warnings.simplefilter('ignore')", "silences"),
    "pickle": ("experiments/x.py", "import pickle", "tensors and JSON"),
    "pickle, beside": ("mbrl/distributed/crew.py", "import pickle", "tensors and JSON"),
    "pickle, from": ("mbrl/data/x.py", "def f():\n    from pickle import load", "tensors and JSON"),
    "torch.load": ("mbrl/x.py", "torch.load(path, weights_only=False)", "can run code"),
    "numpy.load": ("mbrl/x.py", "np.load(path, allow_pickle=True)", "can run code"),
    "print": ("agents/x.py", "def f():\n    print(1)", "print in library code"),
    "long function": ("mbrl/x.py", "def f():\n" + "    a = 1\n" * 60, "has 61 lines"),
    "long file": ("mbrl/x.py", "a = 1\n" * 501, "more than 500 lines"),
}
ALLOWED = {
    "down": ("experiments/x.py", "import envs\nfrom mbrl.models import base\ndef f():\n    import agents.mpc"),
    "same floor": ("mbrl/models/x.py", "from mbrl.data import buffer\nfrom .. import data\nfrom . import base"),
    "look-alike name": ("envs/x.py", "import gymnasium.envs.mujoco\nfrom gymnasium import envs as theirs"),
    "checker": ("envs/check.py", "def f():\n    import pickle\n    from stable_baselines3.common import env_checker"),
    "quiet block": ("mbrl/x.py", "with warnings.catch_warnings():\n    warnings.simplefilter('ignore')"),
    "typed except": ("mbrl/x.py", "try:\n    f()\nexcept (OSError, ValueError):\n    g()"),
    "device": ("mbrl/x.py", "ok = torch.cuda.is_available()\nx = x.to(device)"),
    "messages": ("mbrl/distributed/parcel.py", "import pickle"),
    "safe load": ("mbrl/x.py", "torch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)"),
    "print": ("experiments/cli.py", "print('done')"),
    "own printer": ("mbrl/x.py", "console.print('done')"),
    "long enough": ("mbrl/x.py", "def f():\n" + "    a = 1\n" * 59),
}


@pytest.mark.parametrize(("path", "source", "why"), PLANTED.values(), ids=PLANTED)
def test_planted_violation_is_found(path: str, source: str, why: str) -> None:
    found = violations(source, Path(path))
    assert len(found) == 1
    assert why in found[0]
    assert found[0].startswith(f"{path}:")


@pytest.mark.parametrize(("path", "source"), ALLOWED.values(), ids=ALLOWED)
def test_allowed_source_passes(path: str, source: str) -> None:
    assert violations(source, Path(path)) == []
