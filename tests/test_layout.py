"""How the packages depend on each other, derived from their imports; nothing is exempt."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND, BUILDER, CAPTURE = PACKAGES = ("llava_amber_activations", "builder", "capture")
# Whatever stands in a package's own folder, beside its sub-packages, is few and well known.
MOST_MODULES, FEWEST_MODULES = 9, 3


def modules():
    """Return the path of every module of the three packages, by its dotted name."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    named = ((path.relative_to(ROOT).with_suffix("").parts, path) for path in paths)
    return {
        ".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for parts, path in named
    }


MODULES = modules()


def imports(name):
    """Return the modules of the three packages that one imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            # `from package import module` imports the module.
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (below & MODULES.keys()) or {node.module}
        # The public names of the ground are imported when they are first asked for.
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(f"{name}.{node.value}")
    return (found & MODULES.keys()) - {name}


IMPORTS = {name: imports(name) for name in MODULES}


def folder_of(name):
    """Return the sub-package that a module is in; a package's own modules stand for themselves."""
    parts = name.split(".")
    is_folder = MODULES[name].name == "__init__.py"
    return name if is_folder or len(parts) <= 2 else ".".join(parts[:2])


def order(graph):
    """Return the order of a graph without circles, and fail naming a circle of one with."""
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"these import each other: {' <- '.join(error.args[1])}")


def test_modules_do_not_import_in_circles():
    assert set(order(IMPORTS)) == set(MODULES)


def test_folders_do_not_import_in_circles():
    graph = {}
    for name, found in IMPORTS.items():
        mine = graph.setdefault(folder_of(name), set())
        mine |= {folder_of(each) for each in found} - {folder_of(name)}
    order(graph)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_packages_import_the_ground_and_not_each_other(name):
    package = name.partition(".")[0]
    allowed = {package, GROUND}
    assert {each.partition(".")[0] for each in IMPORTS[name]} <= allowed


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith(CAPTURE)))
def test_capture_imports_datasets_for_hf_inputs_alone(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        imported = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module]
        if any(each.partition(".")[0] == "datasets" for each in imported):
            assert name == "capture.samples.hf_dataset"


def test_a_folder_can_be_taken_in_at_a_glance():
    """Four to eight files a folder, give or take one."""
    counts = {}
    for name, path in MODULES.items():
        if path.name != "__init__.py":
            folder = name.rpartition(".")[0]
            counts[folder] = counts.get(folder, 0) + 1
    assert {f: n for f, n in counts.items() if not FEWEST_MODULES <= n <= MOST_MODULES} == {}
