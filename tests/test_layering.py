"""Imports point one way: a module knows only the layers before its own."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [  # a name stands for the module and all below it; modules of one layer may know each other
    {
        "scoresde.errors",
        "scoresde._batches",
        "scoresde._files",
        "scoresde._json",
        "scoresde._movable",
        "scoresde._shape",
        "scoresde._stable",
    },
    {
        "scoresde._by_level",
        "scoresde.codec",
        "scoresde.condition",
        "scoresde.noise",
        "scoresde.operators",
        "scoresde.resize",
        "scoresde.sde",
    },
    {
        "scoresde.named_sdes",
        "scoresde.learned_sde",
        "scoresde.networks",
        "scoresde.parametrization",
        "scoresde.reverse",
        "scoresde.targets",
    },
    {"scoresde.score_model"},
    {"scoresde.bounds", "scoresde.models"},
    {"scoresde.guidance"},
    {"scoresde.inverse"},
    {"scoresde.objective", "scoresde.classification", "scoresde.contrastive", "scoresde.autoencoding"},
    {"scoresde.hybrid", "scoresde.upsampling"},
    {"scoresde.registry"},
    {"scoresde.descriptions"},
    {"scoresde.checkpoint"},
    {"scoresde.interop", "scoresde.text"},
    {"samplers.table", "samplers.grids", "samplers.base"},
    {"samplers"},
    {"scoresde.data", "scoresde.plots"},
    {"scoresde.training", "scoresde.metrics"},
    {"sde_configs"},
    {"scoresde.app"},
    {"main"},
]
NETWORKS_KNOW = ("scoresde.networks.", "scoresde.condition", "scoresde.errors", "scoresde._")
FILES = [
    ROOT / "main.py",
    *(f for d in ("scoresde", "samplers", "sde_configs") for f in sorted((ROOT / d).rglob("*.py"))),
]
MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in FILES}


def layer(module):
    """The index of the longest name that holds a module; every module must have its place."""
    return max(
        (len(name), i) for i, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")
    )[1]


def imports(file):
    """Modules of this repository that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}, line {node.lineno}: a relative import"
            names = (f"{node.module}.{alias.name}" for alias in node.names)  # a module, or something out of one
            yield from (name if name in MODULES else node.module for name in names if node.module in MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_layers_before_it(module):
    package = module.split(".")[0]
    for imported in imports(MODULES[module]):
        if MODULES[module].name == "__init__.py":
            assert imported.startswith(f"{module}."), f"{imported}: a face shows its own package and nothing else"
            continue
        assert imported != package, "the face of the package that it is part of"
        assert layer(imported) <= layer(module), f"{imported}: a later layer"
        if package == "scoresde" and not module.startswith("scoresde.app"):
            assert imported.startswith("scoresde."), f"{imported}: theory and training know no solver and no configs"
        if module.startswith("scoresde.networks"):
            assert imported.startswith(NETWORKS_KNOW), f"{imported}: networks know no SDE"


def test_no_module_imports_itself_through_others():
    graph = {module: set(imports(file)) for module, file in MODULES.items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
