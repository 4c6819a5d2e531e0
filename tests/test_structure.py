"""The architecture, held by a test: who may import whom, and what start-up may cost."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from twingpt.core.engines import engine_names

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "twingpt"

# A part of the house -> the parts that it may import.
ALLOWED = {
    "core": {"core"},
    "data": {"core", "data"},
    "weights": {"core", "data", "weights"},
    "backends": {"core", "backends"},
    "answers": {"core", "data", "answers"},
    "generation": {"core", "data", "weights", "answers", "generation"},
    "checks": {"core", "weights", "checks"},
    "training": {"core", "data", "weights", "generation", "checks", "training"},
    "evaluation": {"core", "data", "weights", "generation", "training", "evaluation"},
    "measure": {"core", "weights", "checks", "training", "measure"},
    "interchange": {"core", "data", "weights", "generation", "training", "interchange"},
    "report": {"core", "data", "weights", "checks", "training", "measure", "report"},
    "serve": {"core", "data", "weights", "generation", "answers", "training", "serve"},
}
# The rooms of data -> the rooms that each may import.
ALLOWED_IN_DATA = {
    "files": set[str](),
    "contacts": {"contacts"},
    "text": {"contacts", "text"},
    "tokens": {"files", "text", "tokens"},
    "samples": {"contacts", "text", "tokens", "samples"},
    "library": {"files", "contacts", "text", "tokens", "samples", "library"},
    "prepare": {"files", "contacts", "text", "tokens", "samples", "library", "prepare"},
}
# Parts that are imported only where their extra is asked for.
EXTRAS_OF = {"backends": ["torch", "mlx"], "serve": ["serve"], "report": ["report"]}
BROUGHT_BY = {"fastapi": ["pydantic", "starlette"], "jinja2": ["markupsafe"]}
FRAMEWORKS = {"torch": "torch_mps", "mlx": "mlx"}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute here"
            yield node.module


def _violations(path: Path, source: str) -> Iterator[str]:
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] != "twingpt" or len(parts) == 1:
            continue
        if source in ALLOWED and parts[1] not in ALLOWED[source]:
            yield f"{path.relative_to(PACKAGE)} imports {name}"
        if source == "data" and parts[1] == "data":
            room = path.relative_to(PACKAGE / "data").parts[0].removesuffix(".py")
            if room != "__init__" and parts[2] not in ALLOWED_IN_DATA[room]:
                yield f"{path.relative_to(PACKAGE)} imports {name}"
        if source == "backends" and parts[1] == "backends":
            mine = path.relative_to(PACKAGE / "backends").parts[0]
            if parts[2] != mine:
                yield f"{path.relative_to(PACKAGE)} imports the other engine, {name}"


def test_imports_run_one_way() -> None:
    found = [
        violation
        for path in sorted(PACKAGE.rglob("*.py"))
        for violation in _violations(path, path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    ]
    assert found == []


def test_a_wrong_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / "backends" / "mlx" / "model.py"
    path.parent.mkdir(parents=True)
    path.write_text("from twingpt.backends.torch_mps import step\nfrom twingpt.training import log\n")
    assert len(list(_violations(path, "backends"))) == 2
    path = tmp_path / "data" / "contacts" / "forms.py"
    path.parent.mkdir(parents=True)
    path.write_text("from twingpt.data.samples import make\nfrom twingpt.data.contacts.labels import KINDS\n")
    assert list(_violations(path, "data")) == ["data/contacts/forms.py imports twingpt.data.samples"]


def test_every_room_has_its_directions() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert rooms - {"commands", "examples"} == set(ALLOWED)
    rooms = {path.stem for path in (PACKAGE / "data").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == set(ALLOWED_IN_DATA)


def test_no_file_name_has_two_meanings() -> None:
    """A command has the name of what it calls, and each engine has the same files; else a name stands once."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "commands"]
    names = [path.name for path in paths if path.parent == PACKAGE or path.parts[len(PACKAGE.parts)] != "backends"]
    assert sorted({name for name in names if names.count(name) > 1} - {"__init__.py"}) == []


def test_only_the_entry_point_reads_the_command_line() -> None:
    """Everything else is told what it needs, and settings travel as objects."""
    names = [(path, node) for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    readers = {path.name for path, node in names if isinstance(node, ast.Attribute) and node.attr == "argv"}
    assert readers == {"cli.py"}
    callers = {path.name for path, node in names if isinstance(node, ast.Name) and node.id == "locals"}
    assert callers == set()


def test_core_imports_only_numpy() -> None:
    allowed = sys.stdlib_module_names | {"numpy", "twingpt"}
    for path in (PACKAGE / "core").glob("*.py"):
        assert {name.split(".")[0] for name in _imports(path)} <= allowed, path


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_is_imported_at_the_top_only_by_its_engine(framework: str) -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = ast.Module(body=[n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], type_ignores=[])
        names = {
            (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.walk(top)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        if any(name.split(".")[0] == framework for name in names):
            assert FRAMEWORKS[framework] in path.relative_to(PACKAGE).parts, path


# Lines outside backends/ that may name an engine or its framework -> why.
NAMED = {
    ("cli.py", "help of the whole program"): "Train your own GPT from one text file, in PyTorch (MPS) or MLX",
    ("commands/train.py", "an option that the user knows by this name"): "--mps-fallback",
    ("commands/train.py", "its help"): "Let PyTorch run on the CPU, slowly, what has no Metal kernel",
    ("weights/foreign.py", "a format of foreign files"): "torch",
    ("weights/foreign.py", "reads foreign files"): "reading a .pt file needs torch",
    ("weights/foreign.py", "what it says of one"): "{path} cannot be read as a torch checkpoint",
    ("interchange/convert.py", "the same format"): "torch",
    ("interchange/model_card.py", "what the Hub calls the library of mlx-lm's models"): "mlx",
    ("checks/parity.py", "transformers is an opinion from outside, and computes in PyTorch"): "torch",
    ("evaluation/held_out.py", "a name in a file: the answer that is right"): "reference",
}
IMPORTED = {"weights/foreign.py": "reads foreign files", "checks/parity.py": "holds the engines against transformers"}
NAME = re.compile(r"(?i:\b(mps|mlx|torch|pytorch|torchrun)\b)|PYTORCH_|MLX_")


def _texts(tree: ast.Module) -> Iterator[str]:
    """The strings of a file that are no docstrings."""
    told = [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    docstrings = {id(node.value) for node in told}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def _names_of_engines(path: Path) -> Iterator[str]:
    """What ties a file to an engine: its name, the name of its framework, or an import of either."""
    part = path.relative_to(PACKAGE).as_posix()
    allowed = [text for (place, _), text in NAMED.items() if place == part]
    for text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
        # mlx-lm is a program that reads exported models.
        named = text in engine_names() or NAME.search(text.replace("mlx-lm", ""))
        if named and not any(text == known or (" " in known and text.startswith(known)) for known in allowed):
            yield f"{part} names {text!r}"
    for name in _imports(path):
        own = name.split(".")[0] in FRAMEWORKS and part not in IMPORTED
        if own or name.startswith("twingpt.backends"):
            yield f"{part} imports {name}"


def test_only_its_folder_knows_an_engine() -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "backends"]
    assert [found for path in sorted(paths) for found in _names_of_engines(path)] == []
    pages = [path for path in PACKAGE.rglob("*") if path.suffix in (".html", ".js", ".css")]
    assert pages
    assert [path for path in pages if NAME.search(path.read_text(encoding="utf-8"))] == []


def test_a_line_that_knows_an_engine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / "training" / "estimate.py"
    path.parent.mkdir()
    path.write_text(
        '"""For torch."""\nfrom twingpt.backends.mlx import step\n\ndef f(name):\n    """In mlx."""\n'
        '    import torch\n    return name == "reference" or f"{name}: MLX is slow" or name == "mlx-lm"\n'
    )
    assert list(_names_of_engines(path)) == [
        "training/estimate.py names 'reference'",
        "training/estimate.py names ': MLX is slow'",
        "training/estimate.py imports twingpt.backends.mlx",
        "training/estimate.py imports torch",
    ]


def test_every_exception_is_still_one() -> None:
    for (place, reason), text in NAMED.items():
        texts = _texts(ast.parse((PACKAGE / place).read_text(encoding="utf-8")))
        assert any(found.startswith(text) for found in texts), reason
    for place, reason in IMPORTED.items():
        assert "torch" in set(_imports(PACKAGE / place)), reason


def _undeclared(path: Path, extras: list[str]) -> set[str]:
    """Packages that a file imports at its top, and that an installation with these extras does not bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    declared = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in lines}
    declared |= {brought for name in declared for brought in BROUGHT_BY.get(name, ())}
    top = [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {alias.name for n in top if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in top if isinstance(n, ast.ImportFrom) and n.module}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - declared - {"twingpt"}


def test_what_is_imported_is_declared() -> None:
    """The development environment has more than a user gets."""
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0]
        assert _undeclared(path, EXTRAS_OF.get(part, [])) == set(), path
    assert _undeclared(PACKAGE / "serve" / "server.py", []) == {"fastapi", "uvicorn"}


def test_the_engines_are_mirrored() -> None:
    torch_files, mlx_files = (
        {str(path.relative_to(folder)) for path in folder.rglob("*.py")}
        for folder in (PACKAGE / "backends" / engine for engine in FRAMEWORKS.values())
    )
    # PyTorch is quick on a CPU by itself.
    assert torch_files | {f"linux_cpu/{name}.py" for name in ("blas", "exponentials", "parts")} == mlx_files
    # Nothing is measured with NumPy.
    operations = {name for name in torch_files if name.split("/")[-1] in ("ops.py", "measured.py") or "/" in name}
    assert {path.name for path in (PACKAGE / "backends" / "reference").glob("*.py")} == torch_files - operations


@pytest.mark.parametrize("name", ["model.py", "step.py", "ops.py"])
def test_the_engines_say_things_in_the_same_order(name: str) -> None:
    """Classes and functions by their names, whether or not they are for the file alone."""
    orders = []
    for engine in FRAMEWORKS.values():
        body = ast.parse((PACKAGE / "backends" / engine / name).read_text(encoding="utf-8")).body
        made = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        orders.append([node.name.replace("_", "").lower() for node in made])
    shared = set(orders[0]) & set(orders[1])
    assert [name for name in orders[0] if name in shared] == [name for name in orders[1] if name in shared]
    assert shared


@pytest.mark.parametrize("engine", FRAMEWORKS.values())
@pytest.mark.parametrize("name", ["model.py", "step.py"])
def test_an_engine_reads_as_it_runs_on_metal(engine: str, name: str) -> None:
    """What another machine needs is in the operations that the engine is given, and not asked for where it computes."""
    path = PACKAGE / "backends" / engine / name
    assert _platform_questions(path) == []


def _platform_questions(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [name for name in _imports(path) if name in ("os", "sys", "platform") or "linux_cpu" in name]
    found += [n.name for n in ast.walk(tree) if isinstance(n, ast.alias) and n.name in ("cpu", "linux_cpu")]
    asked = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    found += [name for name in asked if name in ("cpu.here", "sys.platform") or name.startswith("platform.")]
    return found


def test_a_platform_question_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        "import sys\nfrom twingpt.backends.mlx import linux_cpu\nx = cpu.here() or sys.platform == 'linux'\n"
    )
    assert len(_platform_questions(path)) == 4


@pytest.mark.parametrize(
    "code",
    [
        "import twingpt",
        "import sys; sys.argv = ['twingpt', '--help']; main()",
        # Whose help lists the engines.
        "import sys; sys.argv = ['twingpt', 'train', '--help']; main()",
    ],
)
def test_start_up_loads_no_framework(code: str) -> None:
    program = (
        "import sys, contextlib\nfrom twingpt.cli import main\nwith contextlib.suppress(SystemExit):\n"
        f"    {code}\nprint('LOADED', sorted({{'torch', 'mlx', 'numpy', 'tokenizers', 'llguidance'}} "
        "& set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "LOADED []"
