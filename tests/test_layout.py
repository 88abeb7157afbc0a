"""What holds because the repository root is the package: names, wheel, direction of imports."""

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from shutil import copy2
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Folder -> the folders it may import besides itself.
ALLOWED = {
    "data": set(),
    "tokenizers": {"data"},
    "lm": {"data", "tokenizers"},
    "generation": {"data", "tokenizers", "lm"},
    "eval": {"data", "tokenizers", "lm", "generation"},
    "bridge": {"data", "tokenizers", "lm", "generation"},
    "training": {"data", "tokenizers", "lm", "generation", "eval"},
    "cli": {"data", "tokenizers", "lm", "generation", "eval", "bridge", "training"},
}
LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}


def python(code, folder, **variables):
    """Run code in a fresh interpreter."""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def files():
    """Every file of the checkout that git knows or would add, relative to the root."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("the layout is read from git, and this is no git checkout")
    return [path for path in map(Path, filter(None, done.stdout.split("\0"))) if (ROOT / path).is_file()]


@pytest.fixture(scope="module")
def modules(files):
    """Dotted name -> path, of every module of the package."""
    found = [path for path in files if path.suffix == ".py"]
    return {dotted(path): path for path in found if path.parts[0] in ALLOWED or path == Path("__init__.py")}


def dotted(path):
    parts = path.with_suffix("").parts
    return ".".join(("smalti", *parts[: -1 if parts[-1] == "__init__" else None]))


def test_hugging_face_tokenizers_is_not_shadowed():
    found = python("import transformers, tokenizers; print(tokenizers.__file__)", ROOT)
    assert not Path(found).is_relative_to(ROOT / "tokenizers")
    assert Path(found).name == "__init__.py"


def test_wheel_holds_every_module_and_config(files, tmp_path):
    source, out = tmp_path / "source", tmp_path / "wheel"
    for path in files:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        copy2(ROOT / path, source / path)
    out.mkdir()
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = out.glob("*.whl")
    packed = {name for name in ZipFile(wheel).namelist() if name.startswith("smalti/")}
    code = {path for path in files if path.suffix == ".py" and path.parts[0] not in ("tests", "benchmarks", "docs")}
    configs = {path for path in files if path.parts[0] == "configs" and path.suffix == ".yaml"}
    weights = {path for path in files if path.parts[0] == "pretrained"}
    assert packed == {f"smalti/{path.as_posix()}" for path in code | configs | weights | {Path("py.typed")}}


def imports(path, name):
    """Dotted names that a module imports, deferred imports included, imports for type checkers left out."""
    tree = ast.parse((ROOT / path).read_text())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    skipped = {node for test in ast.walk(tree) if for_types(test) for child in test.body for node in ast.walk(child)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


@pytest.fixture(scope="module")
def graph(modules):
    """Module -> the modules of this package that it imports."""
    edges = {name: set() for name in modules}
    for name, path in modules.items():
        for target in imports(path, name):
            while target and target not in modules:
                target = target.rpartition(".")[0]
            edges[name] |= {target} - {"", name}
    return edges


def folder(name):
    return name.split(".")[1] if "." in name else ""


def test_the_graph_sees_imports(graph):
    assert {"smalti.data.files", "smalti.tokenizers.codes"} <= graph["smalti.tokenizers.base"]
    assert "smalti.tokenizers.base" in graph["smalti.tokenizers.vq"]


def test_no_import_cycle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_imports_point_one_way(graph):
    wrong = [
        f"{name} imports {target}"
        for name, targets in graph.items()
        for target in targets
        if folder(name) and folder(target) not in ALLOWED[folder(name)] | {folder(name), ""}
    ]
    assert not wrong


def test_only_training_and_cli_import_lightning(modules):
    wrong = [
        name
        for name, path in modules.items()
        if folder(name) not in ("training", "cli")
        and LIGHTNING & {target.split(".")[0] for target in imports(path, name)}
    ]
    assert not wrong


def test_everything_else_imports_without_lightning(modules, tmp_path):
    names = [name for name in modules if folder(name) not in ("training", "cli")]
    code = f"""
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(LIGHTNING)}:
            raise ModuleNotFoundError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocked())
for name in {names}:
    importlib.import_module(name)
    print(name)
"""
    assert python(code, tmp_path).splitlines()[-len(names) :] == names
