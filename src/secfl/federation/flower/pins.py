"""What a task must match before any of it is looked at: bundle, identity and run configuration.

The executor runs its own copy of the pinned app. A task that names other code or another configuration is refused,
whoever sent it: the bundle that came over the wire is hashed and dropped, never unpacked (FL-29).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.common.serde import user_config_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputResponse

from secfl.errors import EngineError
from secfl.federation.flower.bundle import Bundle
from secfl.federation.flower.launch import Scalar

__all__ = ["Pins"]


@dataclass(frozen=True, slots=True)
class Pins:
    """The agreed app and configuration.

    Attributes:
        bundle: the pinned bundle, built here.
        overrides: the run configuration that the policy sets over the app's own.
    """

    bundle: Bundle
    overrides: Mapping[str, Scalar]

    def check(self, task: PullTaskInputResponse) -> dict[str, Scalar]:
        """Return the run configuration to use, if the task is for the pinned app and configuration.

        Raises:
            EngineError: `engine.task_incomplete`, `engine.app_not_pinned`, `engine.app_identity`,
                `engine.run_config_changed`.
            ConfigError: `engine.run_config_key`.
        """
        # 1. All parts are there: an absent part would compare equal to an empty one.
        if not (task.HasField("run") and task.HasField("fab") and task.HasField("context")):
            raise EngineError("engine.task_incomplete", "the task lacks its run, bundle or context")
        # 2. The code that came along and every name given to it are the pinned bundle's.
        delivered = hashlib.sha256(task.fab.content).hexdigest()
        for digest in (delivered, task.fab.hash_str, task.run.fab_hash):
            if digest != self.bundle.sha256:
                raise EngineError(
                    "engine.app_not_pinned",
                    "the task brings another app than the policy names",
                    expected=self.bundle.sha256,
                    actual=digest,
                )
        if (task.run.fab_id, task.run.fab_version) != (self.bundle.app_id, self.bundle.version):
            raise EngineError("engine.app_identity", "the task names another app id or version")
        # 3. Whoever starts a run chooses its overrides: they must be the policy's, to the type.
        if _typed(user_config_from_proto(task.run.override_config)) != _typed(self.overrides):
            raise EngineError("engine.run_config_changed", "the run configuration is not the policy's")
        agreed = self.bundle.run_config(self.overrides)
        # A SuperNode merges the configuration itself; a SuperLink leaves that to the executor.
        merged = user_config_from_proto(task.context.run_config)
        if merged and _typed(merged) != _typed(agreed):
            raise EngineError("engine.run_config_changed", "the merged run configuration is not the policy's")
        return agreed


def _typed(config: Mapping[str, Scalar]) -> dict[str, tuple[str, Scalar]]:
    # 1, 1.0 and True compare equal but are not the same configuration.
    return {key: (type(value).__name__, value) for key, value in config.items()}
