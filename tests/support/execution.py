"""What Flower tells a SuperExec to start."""

from __future__ import annotations

from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec


def execution_spec(kind: TaskType = TaskType.CLIENT_APP, **changes: object) -> ExecutionSpec:
    """Return what a SuperExec is told to start; `changes` by the names of its fields."""
    values: dict[str, object] = {
        "task_type": kind,
        "runtime_api_address": "127.0.0.1:1",
        "token": "token",
        "insecure": True,
        "root_certificates_path": None,
        "runtime_dependency_install": True,
        "parent_pid": 7,
        "suppress_output": False,
        "task_id": 1,
        "fab_hash": "hash",
    }
    return ExecutionSpec(**{**values, **changes})  # type: ignore[arg-type]
