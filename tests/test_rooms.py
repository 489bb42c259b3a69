"""Who may import whom, and how large the house may get. docs/HOUSE.md draws it."""

import ast
from pathlib import Path

BE = Path(__file__).parents[1] / "be"
ROWS = [
    ["config", "video", "augment", "erase", "backbones"],
    ["weights", "datasets", "objectives", "synthetic"],
    ["runs"],
    ["evaluate"],
    ["train", "retrieve", "report"],
    ["bias", "prepare"],
    ["analysis"],
]
METHOD = ["erase", "objectives", "train"]  # what a run needs to train: it must not need
BESIDE = {"synthetic", "bias", "analysis", "report", "prepare"}  # these
MODULES, LINES, LINES_OF_A_MODULE, LINES_OF_A_FUNCTION = 17, 7000, 650, 60

TREES = {path.stem: ast.parse(path.read_text()) for path in BE.glob("*.py") if path.stem != "__init__"}


def imports(tree):
    """Of every import in a module, those inside functions too: the dotted name, in parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}".split(".") for alias in node.names)


ROOMS = {module: {name[1] for name in imports(tree) if name[0] == "be"} for module, tree in TREES.items()}


def chain(module):
    """The longest chain of imports that ends in config or another module without imports of be."""
    return [module, *max((chain(other) for other in ROOMS[module]), key=len, default=[])]


def test_a_module_imports_only_from_rows_above_its_own():
    """And anything may read config."""
    row = {module: number for number, modules in enumerate(ROWS) for module in modules}
    assert row.keys() == TREES.keys()
    wrong = [f"{module} imports {other}" for module in ROOMS for other in ROOMS[module] - {"config"}
             if row[other] >= row[module]]  # fmt: skip
    assert not wrong


def test_the_longest_chain_of_imports():
    longest = max(map(chain, ROOMS), key=len)
    assert len(longest) <= len(ROWS), " -> ".join(longest)


def test_training_needs_the_method_alone():
    todo, seen = list(METHOD), set()
    while todo:
        if (module := todo.pop()) not in seen:
            seen.add(module)
            todo += ROOMS[module]
            assert not ROOMS[module] & BESIDE, f"{module} imports {ROOMS[module] & BESIDE}"
    assert {"augment", "datasets", "runs"} <= seen


def test_the_size_of_the_house():
    size = {module: (BE / f"{module}.py").read_text().count("\n") for module in TREES}
    assert len(size) <= MODULES and sum(size.values()) <= LINES, size
    assert max(size.values()) <= LINES_OF_A_MODULE, size
    functions = [(node.end_lineno - node.lineno + 1, f"{module}.{node.name}") for module, tree in TREES.items()
                 for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]  # fmt: skip
    assert max(functions)[0] <= LINES_OF_A_FUNCTION, max(functions)


def test_only_video_imports_pyav():
    assert [module for module, tree in TREES.items() if any(name[0] == "av" for name in imports(tree))] == ["video"]
