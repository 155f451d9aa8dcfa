"""The shape of the package: who imports whom, how long things are, what importing a module loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "moaa_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_MODULE_LINES = 250
MAX_FUNCTION_LINES = 60
MAX_PACKAGE_LINES = 37_200
"""Generation, training, judging, evaluation and serving, each about the size of a peer that does only that."""
LONGER = {}  # path -> reason

OURS_ALLOWED = {
    "core": {"core", "types", "errors"},
    "engines": {"engines", "core", "types", "errors", "settings"},
    "data": {"data", "core", "types", "errors", "settings", "engines"},
    "training": {"training", "core", "data", "types", "errors"},
}
VENDORS = {"ray", "torch", "vllm", "transformers"}
VENDOR_ALLOWED = {
    "generation": {"ray"},
    "training": {"torch"},
    "training_stage": {"ray"},
    "serving": {"ray"},
    "doctor": {"ray"},
}
RAY_IN_TRAINING = "training/trainer.py"
LAZY_VENDOR_ALLOWED = {
    "engines": {"vllm", "transformers", "torch"},
    "demo": {"torch", "transformers"},
    "runtime_env.py": {"ray"},
    "submission.py": {"ray"},
    "telemetry.py": {"ray"},
    "training": {"transformers"},
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at the top of the file) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
        found += [(name, node in tree.body) for name in names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_part_may(path):
    part = part_of(path)
    for module, is_at_top in imports(path):
        top, *rest = module.split(".")
        if top == "moaa_ray" and rest and part in OURS_ALLOWED:
            assert rest[0] in OURS_ALLOWED[part], f"{path} imports {module}"
        if part == "core":
            assert top == "moaa_ray" or top in sys.stdlib_module_names, f"{path} imports {module}"
        if top in VENDORS:
            lazy = LAZY_VENDOR_ALLOWED.get(part, set()) if not is_at_top else set()
            is_glue = top == "ray" and path == PACKAGE / RAY_IN_TRAINING
            assert is_glue or top in VENDOR_ALLOWED.get(part, set()) | lazy, f"{path} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_are_short_and_say_what_they_are_for(path):
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        return
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} has no docstring"
    name = str(path.relative_to(PACKAGE))
    assert len(text.splitlines()) <= MAX_MODULE_LINES or name in LONGER
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES or f"{name}:{node.name}" in LONGER, f"{path}:{node.name} {length}"


def test_the_package_stays_small():
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES) < MAX_PACKAGE_LINES


def test_core_reads_no_clock_no_file_and_no_global_randomness():
    for path in (PACKAGE / "core").glob("*.py"):
        for module, _ in imports(path):
            assert module.split(".")[0] not in {"time", "datetime", "os", "pathlib", "socket", "uuid", "secrets"}, path
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Global), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
                assert node.attr == "Random", f"{path}:{node.lineno} uses the global generator"


@pytest.mark.parametrize("module", ["recipe", "loading", "planning.planner", "cli", "engines.build", "lines.mixture"])
def test_importing_the_front_of_the_package_loads_no_heavy_library(module):
    code = f"import sys, moaa_ray.{module}; print([m for m in {sorted(VENDORS)} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
