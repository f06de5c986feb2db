"""Rules read from the source: which packages import which, and that nothing we read can execute code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.helpers.paths import ROOT

PACKAGES = ("models", "retrieval", "cluster", "trainer")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
#: which of our packages each package may import
LAYERS = {
    "models": {"models"},
    "retrieval": {"retrieval", "models"},
    "cluster": {"cluster"},
    "trainer": set(PACKAGES),
}
#: parts of trainer, and the other parts that they must not import
INNER = {
    "trainer/data/": ("trainer.extract", "trainer.batches", "trainer.config", "trainer.training", "trainer.commands"),
    "trainer/batches/": ("trainer.extract", "trainer.config", "trainer.training", "trainer.commands"),
    "trainer/extract/": ("trainer.batches", "trainer.config", "trainer.training", "trainer.commands"),
}
#: heavy library -> the only file, or the only folder, that imports it
HOMES = {
    "ray": "cluster/",
    "deepspeed": "trainer/training/engine_deepspeed.py",
    "faiss": "retrieval/index/faiss_index.py",
    "mlflow": "trainer/tracking/",
    "webdataset": "trainer/data/format/shards.py",
    "av": "trainer/extract/video/decode.py",
    "transformers": "trainer/extract/",
    "plotly": "trainer/report/",
    "kaleido": "trainer/report/pictures.py",
    "sklearn": "trainer/analysis/embedding.py",
}

#: reads a .pth file of an installed package (whose code we run anyway) with torch's restricted unpickler
WEIGHTS_OF_A_PACKAGE = "trainer/extract/video/efficientnet.py"


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of all imports of a file, also inside functions, and in `importlib.import_module("name")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _name(node.func) in ("importlib.import_module", "__import__") and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant):
                yield str(first.value)


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_BUILTINS = {"eval", "exec", "compile", "__import__"}
UNSAFE_FUNCTIONS = {
    "builtins.eval", "builtins.exec", "os.system", "os.popen", "torch.load", "pandas.read_pickle",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all",
}  # fmt: skip


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Everything in the source that could execute data that it reads, with its line, under any imported name."""
    for name in imported(tree):
        if name.partition(".")[0] in UNSAFE_MODULES or name in UNSAFE_FUNCTIONS:
            yield f"import of {name}"
    local = dict(_local_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, dot, rest = _name(node).partition(".")
            name = local.get(first, first) + dot + rest
            if name in UNSAFE_FUNCTIONS:
                yield f"line {node.lineno}: {name}"
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_BUILTINS:
            yield f"line {node.lineno}: {node.func.id}"
        for keyword in node.keywords:
            truthy = not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
            if keyword.arg in ("allow_pickle", "shell", "trust_remote_code") and truthy:
                yield f"line {node.lineno}: {_name(node.func)}({keyword.arg}=...)"


def _local_names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name in this file, full name) of each import that has a local name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.AST]:
    """The parsed source of each file."""
    return {name: ast.parse(path.read_text(encoding="utf-8"), name) for name, path in zip(NAMES, FILES, strict=True)}


@pytest.fixture(scope="module")
def imports(trees: dict[str, ast.AST]) -> list[tuple[str, str]]:
    """(file, full name of what it imports)."""
    return [(here, name) for here, tree in trees.items() for name in imported(tree)]


def top(name: str) -> str:
    return name.partition(".")[0]


def test_layers(imports: list[tuple[str, str]]) -> None:
    ours = [(here, name) for here, name in imports if top(name) in PACKAGES]
    assert len(ours) > len(FILES)
    assert [(here, name) for here, name in ours if top(name) not in LAYERS[here.partition("/")[0]]] == []


def test_layers_within_trainer(imports: list[tuple[str, str]]) -> None:
    for folder, others in INNER.items():
        inside = [(here, name) for here, name in imports if here.startswith(folder)]
        assert inside
        assert [each for each in inside if f"{each[1]}.".startswith(tuple(f"{other}." for other in others))] == []


def test_heavy_libraries_have_one_home(imports: list[tuple[str, str]]) -> None:
    heavy = [(here, name) for here, name in imports if top(name) in HOMES]
    assert {top(name) for _, name in heavy} == set(HOMES)
    assert [(here, name) for here, name in heavy if not here.startswith(HOMES[top(name)])] == []


def test_models_need_torch_alone(imports: list[tuple[str, str]]) -> None:
    known = {*sys.stdlib_module_names, "torch", "models"}
    assert [(here, name) for here, name in imports if here.startswith("models/") and top(name) not in known] == []


def test_models_import_without_the_other_libraries() -> None:
    blocked = [*HOMES, "numpy.typing", "polars", "pydantic", "yaml", "safetensors", "scipy"]
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import importlib, pkgutil, models\n"
        "for module in pkgutil.walk_packages(models.__path__, 'models.'): importlib.import_module(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_executes_what_it_reads(trees: dict[str, ast.AST]) -> None:
    found = [(here, why.partition(": ")[2] or why) for here, tree in trees.items() for why in unsafe(tree)]
    assert found == [(WEIGHTS_OF_A_PACKAGE, "torch.load")]
    assert "weights_only=True)" in (ROOT / WEIGHTS_OF_A_PACKAGE).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import cloudpickle",
        "import torch\ntorch.load(p, weights_only=True)",
        "np.load(p, allow_pickle=True)",
        "np.load(p, allow_pickle=flag)",
        "yaml.load(f, Loader=yaml.SafeLoader)",
        "from yaml import load",
        "from yaml import unsafe_load as safe_load",
        "import yaml as y\ny.load(f)",
        "import torch as t\nread = t.load",
        "from torch import load as read",
        "from os import system",
        "eval('1')",
        "subprocess.run('ls', shell=True)",
    ],
)
def test_the_reader_finds_what_is_unsafe(source: str) -> None:
    assert list(unsafe(ast.parse(source)))


@pytest.mark.parametrize(
    "source", ["np.load(p, allow_pickle=False)", "yaml.safe_load(f)", "re.compile('a')", "model.eval()"]
)
def test_the_reader_leaves_what_is_safe(source: str) -> None:
    assert not list(unsafe(ast.parse(source)))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import ray.train", "ray.train"),
        ("def f():\n  from ray import train", "ray.train"),
        ("importlib.import_module('ray')", "ray"),
    ],
)
def test_the_reader_finds_imports(source: str, name: str) -> None:
    assert name in list(imported(ast.parse(source)))


def test_paths_are_not_patterns(trees: dict[str, ast.AST]) -> None:
    """polars takes `[1]`, `*` and `?` in a path for a pattern unless it is told not to."""
    calls = [(here, node) for here, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    readers = [
        (here, node) for here, node in calls if re.fullmatch(r"pl\.(read|scan)_\w+(?<!_schema)", _name(node.func))
    ]
    assert readers
    for here, node in readers:
        literal = any(word.arg == "glob" and ast.unparse(word.value) == "False" for word in node.keywords)
        stream = ast.unparse(node.args[0]).startswith("io.BytesIO(")
        assert literal or stream, f"{here}, line {node.lineno}: {_name(node.func)} without glob=False"
