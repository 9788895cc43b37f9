"""What Ray's dashboard calls the actors: read once, when one is made, so it must be true from then on."""

from __future__ import annotations

import ast
import socket
from pathlib import Path

import miles_lite
from miles_lite.config.choices import WorkerType
from miles_lite.engine.actor import EngineActor
from miles_lite.engine.spec import EngineSpec
from miles_lite.process.addresses import actor_label
from miles_lite.router.actor import RouterActor
from miles_lite.router.spec import RouterSpec

ACTORS = {"AgentWorker", "EngineActor", "Fleet", "RolloutManager", "RouterActor", "SessionActor", "TrainWorker"}


def test_an_actor_is_called_by_role_index_and_node(tmp_path: Path) -> None:
    spec = EngineSpec(
        index=3,
        model_path=str(tmp_path),
        device="cpu",
        worker_type=WorkerType.DECODE,
        log_path=str(tmp_path / "log"),
    )
    assert repr(EngineActor(spec)) == f"EngineActor(3, decode, {socket.gethostname()})"
    assert repr(RouterActor(RouterSpec())) == f"RouterActor({socket.gethostname()})"


def test_no_actor_puts_what_changes_into_its_name() -> None:
    """Each actor's `__repr__` is `actor_label` of its own kind, of nothing that is assigned after `__init__`."""
    named = set()
    for file in Path(miles_lite.__file__).parent.rglob("*.py"):
        for kind in ast.walk(ast.parse(file.read_text())):
            if not isinstance(kind, ast.ClassDef) or kind.name not in ACTORS:
                continue
            methods = {
                each.name: each for each in kind.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            (told,) = methods["__repr__"].body
            assert isinstance(told, ast.Return)
            assert isinstance(told.value, ast.Call)
            assert ast.unparse(told.value.func) == actor_label.__name__
            assert ast.unparse(told.value.args[0]) == repr(kind.name)
            shown = {node.attr for node in ast.walk(told) if isinstance(node, ast.Attribute)}
            changed = {
                node.attr
                for name, method in methods.items()
                if name != "__init__"
                for node in ast.walk(method)
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            }
            assert not shown & changed, f"{kind.name}: {shown & changed}"
            named.add(kind.name)
    assert named == ACTORS
