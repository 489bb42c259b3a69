"""Who may import whom: a module imports only from rows above its own (and anything may read `config`)."""

import ast
from pathlib import Path

ROWS = [
    ["config", "video", "augment", "erase", "backbones", "manifest", "targets"],
    ["datasets", "weights"],
    ["objectives", "runs", "synthetic"],
    ["evaluate"],
    ["probe"],
    ["train"],
    ["prepare", "report"],
    ["retrieve"],
    ["plan"],
    ["bench_data", "bench_train", "bias"],
    ["analysis"],
    ["evidence"],
]
ROW = {module: row for row, modules in enumerate(ROWS) for module in modules}
BE = Path(__file__).parents[1] / "be"


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}").split(".") for alias in node.names)


def test_rows():
    modules = {path.stem: path for path in BE.glob("*.py") if path.stem != "__init__"}
    assert modules.keys() == ROW.keys()
    for module, path in modules.items():
        for name in imports(path):
            if name[0] == "be" and name[1] != "config":
                assert ROW[name[1]] < ROW[module], f"{module} imports {name[1]}"


def test_only_video_imports_pyav():
    users = [path.stem for path in BE.glob("*.py") if any(name[0] == "av" for name in imports(path))]
    assert users == ["video"]
