"""Opening: from a store to a manager, either a new deployment or the one that the store holds.

The whole log is verified before anything is answered; a manager whose log does not hold refuses to start (PB-20). The
founding parties of the launch must be those of entry 0: an operator cannot put other parties over existing data.
"""

from __future__ import annotations

from secfl.crypto.aead import KEY_BYTES
from secfl.errors import FreshnessError, StateError, VerificationError
from secfl.manager import fold
from secfl.manager.core import Manager
from secfl.manager.identity import ManagerIdentity, Random
from secfl.manager.log import Log
from secfl.manager.sealer import Sealer
from secfl.manager.state import State
from secfl.manager.step import Settings
from secfl.manager.store import Store
from secfl.protocol.public import Founders

__all__ = ["open_log", "open_manager", "store_key"]

_DEPLOYMENT_BYTES = 16
_SALT_BYTES = 32


def open_manager(
    store: Store,
    sealer: Sealer,
    founders: Founders,
    *,
    now: int,
    random: Random,
    settings: Settings | None = None,
) -> Manager:
    """Found a deployment, or continue the one in the store.

    Raises:
        ConfigError: the founders are unusable.
        StateError: `founders.differ`.
        VerificationError: `store.sealed_elsewhere`, `store.incomplete` or `log.edited`.
        FreshnessError: `log.removed` or `log.reordered`.
        EncodingError: an entry is malformed.
        UnavailableError: the store cannot be read or written.
    """
    if not store.meta():
        _found(store, sealer, founders, now=now, random=random)
    log, state = open_log(store, sealer)
    if state.identity.public.founders != founders:
        raise StateError(
            "founders.differ",
            "the store belongs to other founding parties",
            hint="start with the founders of this deployment, or with an empty state directory",
        )
    return Manager(log, state, settings=settings)


def open_log(store: Store, sealer: Sealer) -> tuple[Log, State]:
    """Verify the log and fold it.

    Raises:
        SecflError: as `open_manager`.
    """
    deployment_id, key = store_key(store, sealer)
    log, state = Log(deployment_id, key), State()
    for entry in log.load(store.rows()):
        fold.apply(state, entry)
    if log.length == 0:
        raise FreshnessError("log.removed", "the log has no entry")
    if state.identity.deployment_id != deployment_id.hex():
        raise VerificationError("log.edited", "the log belongs to another deployment")
    return log, state


def store_key(store: Store, sealer: Sealer) -> tuple[bytes, bytes]:
    """Give the deployment id and the key of the log.

    Raises:
        VerificationError: `store.sealed_elsewhere` or `store.incomplete`.
    """
    meta = store.meta()
    if not {"deployment_id", "sealed_key"} <= set(meta):
        raise VerificationError("store.incomplete", "the store has no key or no deployment id")
    return meta["deployment_id"], sealer.unseal(meta["sealed_key"], context=meta["deployment_id"])


def _found(store: Store, sealer: Sealer, founders: Founders, *, now: int, random: Random) -> None:
    deployment_id, key = random(_DEPLOYMENT_BYTES), random(KEY_BYTES)
    _, event = ManagerIdentity.create(deployment_id, founders, now=now, random=random)
    entry = Log(deployment_id, key).append(event, now=now, salt=random(_SALT_BYTES))
    meta = {"deployment_id": deployment_id, "sealed_key": sealer.seal(key, context=deployment_id)}
    store.create(meta, [entry.row])
