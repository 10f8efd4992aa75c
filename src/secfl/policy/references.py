"""References from one policy to a volume of another: by name, and pinned by hash.

When the owner's policy changes, its importers stop until they are updated: nobody gets data under rules that they have
not read.
"""

from __future__ import annotations

from secfl.errors import StateError, VerificationError
from secfl.policy.storage import DepositedVolume, ImportReference
from secfl.policy.version import PolicyVersion

__all__ = ["check_import"]


def check_import(reference: ImportReference, owner: PolicyVersion) -> DepositedVolume:
    """Return the volume that a reference names, when the owner's version in force is the pinned one.

    Raises:
        VerificationError: `reference.policy_name` when the version belongs to another policy.
        StateError: `reference.policy_changed`, `policy.unknown_volume` or `reference.not_deposited`.
    """
    if owner.policy.name != reference.policy:
        raise VerificationError(
            "reference.policy_name", "not the policy that the reference names", name=reference.policy
        )
    if owner.hash != reference.policy_hash:
        raise StateError(
            "reference.policy_changed",
            "the owner's policy is not the pinned version",
            hint="review the owner's policy, pin its hash, and vote on the study again",
            expected=reference.policy_hash.hex(),
            actual=owner.hash.hex(),
        )
    volume = owner.policy.volume(reference.volume)
    if not isinstance(volume, DepositedVolume):
        # Re-exporting an import would hide the owner; a writable volume has no fixed content to grant.
        raise StateError("reference.not_deposited", "only a deposited volume can be imported", name=volume.name)
    return volume
