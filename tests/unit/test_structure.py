"""The shape of the package: which way imports go, what is public, where Ray's private names may stand."""

from __future__ import annotations

import ast
import graphlib
import inspect
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import cgexec

PACKAGE = Path(cgexec.__file__).parent
LONGEST_MODULE_LINES = 420
MOST_PUBLIC_NAMES = 45

# A module imports only from its own floor and those before it. `engine` stands for every module in it.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "status", "topology", "refs", "config", "settings", "deadline", "interruption", "isolation"})
    | {"changed", "log", "texts", "trials"},
    frozenset({"classify", "exception_info"}),
    frozenset({"hosts", "shapes", "supervision", "stopwatch"}),
    frozenset({"engine"}),
    frozenset({"lifecycle", "recovery", "outcomes", "stats"}),
    frozenset({"execution", "reading", "sending", "notices", "pump", "asynchronous", "attending", "executions"})
    | {"waiting", "overseer", "core", "watch", "membership", "supervisor", "executor", "testing"},
    frozenset({"pipeline"}),
    frozenset({"cli", "demo", "chaos", "__main__"}),
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# `from cgexec import GraphExecutor`: the package shows what the executor's floor has, and nothing below may look there.
FLOOR_OF_THE_PACKAGE = FLOOR_OF["executor"]


def module_name(path: Path) -> str:
    parts = ("cgexec", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: dict[str, Path] = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES: dict[str, ast.Module] = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}
EVERY_MODULE = pytest.mark.parametrize("module", MODULES)


def imports_of(module: str) -> Iterator[str]:
    """Yield every module of cgexec that ``module`` imports, at its top or inside a function."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "cgexec")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: a relative import"
            origin = node.module or ""
            if origin.split(".")[0] == "cgexec":
                for alias in node.names:
                    submodule = f"{origin}.{alias.name}"
                    yield submodule if submodule in MODULES else origin


def floor_of(module: str) -> int:
    if module == "cgexec":
        return FLOOR_OF_THE_PACKAGE
    name = module.split(".")[1]
    assert name in FLOOR_OF, f"{module} has no floor: give it one in this test and in the drawing of the floors"
    return FLOOR_OF[name]


# -- imports -----------------------------------------------------------------------------------------------------------


@EVERY_MODULE
def test_every_module_has_a_floor(module: str) -> None:
    assert 0 <= floor_of(module) < len(FLOORS)


def test_every_floor_is_lived_on() -> None:
    assert set(FLOOR_OF) == {module.split(".")[1] for module in MODULES if module != "cgexec"}


@pytest.mark.parametrize("module", [module for module in MODULES if module != "cgexec"])
def test_imports_go_down_and_never_up(module: str) -> None:
    upward = {imported for imported in imports_of(module) if floor_of(imported) > floor_of(module)}
    assert upward == set()


def test_there_are_no_circles_among_the_imports() -> None:
    arrows = {module: set(imports_of(module)) - {module} for module in MODULES}
    order = list(graphlib.TopologicalSorter(arrows).static_order())  # raises CycleError, with the circle
    assert set(order) == set(MODULES)


def test_the_imports_are_really_read() -> None:
    assert {"cgexec.classify", "cgexec.engine.protocol"} <= set(imports_of("cgexec.outcomes"))
    assert "cgexec.engine.bounded" in set(imports_of("cgexec.engine.build"))
    assert "cgexec.executor" in set(imports_of("cgexec"))


# -- what is public ----------------------------------------------------------------------------------------------------

AGREED = {
    # The job types of eformer's executor:
    "DONE",
    "DoneSentinel",
    "ExceptionInfo",
    "HostInfo",
    "JobError",
    "JobFailed",
    "JobInfo",
    "JobPreempted",
    "JobStatus",
    "JobSucceeded",
    "MultisliceInfo",
    "RefBox",
    "SliceInfo",
    "SnitchRecipient",
    "StopwatchActor",
    "current_actor_handle",
    "handle_ray_error",
    "log_failures_to",
    "print_remote_raise",
    # Ours:
    "CgexecError",
    "Execution",
    "ExecutionInfo",
    "GraphClosedError",
    "GraphConfig",
    "GraphExecutor",
    "GraphFailedError",
    "GraphSpecError",
    "GraphState",
    "HostGroup",
    "LostHost",
    "NotEnoughHostsError",
    "RebuildPolicy",
    "chain",
    "fan_out",
    "scatter",
}


def test_all_names_what_can_be_had_and_nothing_twice() -> None:
    (checked,) = [node for node in TREES["cgexec"].body if isinstance(node, ast.If)]  # what mypy and editors see
    seen = [(node.module, alias.name) for node in checked.body for alias in node.names]  # type: ignore[attr-defined]
    found = [(module, name) for module, names in cgexec._FOUND_IN.items() for name in names]
    assert sorted(found) == sorted(seen)
    assert {name for _, name in found} == set(cgexec.__all__) <= set(dir(cgexec))
    assert [name for name, count in Counter(cgexec.__all__).items() if count > 1] == []
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cgexec.nothing  # noqa: B018
    assert cgexec.errors.CgexecError is cgexec.CgexecError, "a module is imported when it is first asked for, too"


def test_a_host_imports_no_more_than_it_needs() -> None:
    """It takes a host as long as everything else about a new graph. What Ray imports itself is left out."""
    code = """
import sys, ray._private.worker
rays = set(sys.modules)
from cgexec.engine import in_actor
of_a_loop = "ray.dag.compiled_dag_node"
assert of_a_loop in rays or of_a_loop not in sys.modules, "a new actor is looked through for loops, which takes long"
assert in_actor.loops_here() == set()
found = set(sys.modules) - rays
import ray.dag.compiled_dag_node
rays = set(sys.modules)
in_actor._load_tasks()
print(*found, *(set(sys.modules) - rays))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(run.stdout.split())
    assert "cgexec.engine.tasks" in found
    drivers = {"core", "executor", "status", "topology", "exception_info", "changed", "stats"}
    in_the_engine = {"compiled", "protocol", "preparation", "session", "framing", "graph_spec", "ordering"}
    assert {f"cgexec.{name}" for name in drivers} & found == set()
    assert {f"cgexec.engine.{name}" for name in in_the_engine} & found == set()
    assert {"numpy", "tblib"} & found == set()


def test_the_agreed_names_are_there() -> None:
    assert AGREED - set(cgexec.__all__) == set()


def test_there_are_few_public_names() -> None:
    assert len(cgexec.__all__) <= MOST_PUBLIC_NAMES


def test_the_package_itself_only_imports() -> None:
    allowed = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.If, ast.FunctionDef)
    assert [ast.unparse(node) for node in TREES["cgexec"].body if not isinstance(node, allowed)] == []


PUBLIC = {
    name: getattr(cgexec, name)
    for name in cgexec.__all__
    if inspect.isclass(getattr(cgexec, name)) or inspect.isfunction(getattr(cgexec, name))
}


def documented(thing: object, name: str) -> bool:
    # A dataclass without a docstring is given its signature for one.
    doc = (getattr(thing, "__doc__", None) or "").strip()
    return bool(doc) and not doc.startswith(f"{name}(")


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_says_what_it_does(name: str) -> None:
    thing = PUBLIC[name]
    assert documented(thing, name)
    if inspect.isclass(thing):
        members = {
            member: getattr(value, "__func__", value)
            for member, value in vars(thing).items()
            if not member.startswith("_")
        }
        silent = [
            member
            for member, value in members.items()
            if (inspect.isfunction(value) or isinstance(value, property)) and not documented(value, member)
        ]
        assert silent == []


# -- Ray's private names -----------------------------------------------------------------------------------------------


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names_used_in(tree: ast.AST) -> Iterator[str]:
    """Yield each use of somebody else's private name: an import, an attribute, or one asked for by its text."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names) if any(is_private(part) for each in names for part in each.name.split(".")):
                yield f"line {node.lineno}: {ast.unparse(node)}"
            case ast.ImportFrom(module, names) if (module or "").split(".")[0] != "__future__" and (
                any(is_private(part) for part in (module or "").split("."))
                or any(is_private(each.name) for each in names)
            ):
                yield f"line {node.lineno}: {ast.unparse(node)}"
            case ast.Attribute(ast.Name("self" | "cls"), _):
                pass
            case ast.Attribute(_, name) if is_private(name):
                yield f"line {node.lineno}: {ast.unparse(node)}"
            case ast.Call(
                ast.Name("getattr" | "setattr" | "hasattr" | "delattr"), [_, ast.Constant(str(name)), *_]
            ) if is_private(name):
                yield f"line {node.lineno}: {ast.unparse(node)}"


# An actor's method that a subclass may override, whose name is agreed; and a function of the standard library's.
ALLOWED = {"cgexec.supervision": ("parent._child_failed",), "cgexec.testing.misbehaviour": ("os._exit",)}


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("cgexec.engine")])
def test_private_names_of_others_stand_in_the_engine_alone(module: str) -> None:
    found = [use for use in private_names_used_in(TREES[module]) if not use.endswith(ALLOWED.get(module, "\0"))]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.worker",
        "from ray._private import worker",
        "from ray import _raylet",
        "ray._private.worker.global_worker",
        "actor._actor_id",
        "self.actor._actor_id",
        "getattr(actor, '_actor_id', None)",
        "compiled._monitor.join()",
        "node()._upstream_nodes",
    ],
)
def test_a_private_name_is_seen_in_every_form(source: str) -> None:
    assert len(list(private_names_used_in(ast.parse(source)))) == 1


@pytest.mark.parametrize(
    "source", ["self._actor", "cls._instance", "actor.__ray_call__", "from __future__ import x", "_x"]
)
def test_ones_own_private_names_are_left_alone(source: str) -> None:
    assert list(private_names_used_in(ast.parse(source))) == []


# -- size --------------------------------------------------------------------------------------------------------------


@EVERY_MODULE
def test_no_module_grows_too_long(module: str) -> None:
    assert len(MODULES[module].read_text("utf-8").splitlines()) <= LONGEST_MODULE_LINES
