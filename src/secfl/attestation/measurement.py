"""The measurement of what an enclave starts: image, arguments, environment, working directory.

The simulated platform computes it from what it executes and the image's builder from what it built; equal inputs give
equal measurements, and nothing else does. Real hardware measures differently; its values come from its own tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secfl.crypto import strict_json
from secfl.crypto.transcript import digest256, digest384

__all__ = ["sgx_measurement", "tdx_measurement"]

_ROOT_BYTES = 32


def tdx_measurement(image_root: bytes, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> bytes:
    """Give the 48-byte measurement of a simulated trust domain (MRTD).

    Raises:
        ValueError: the image root is not 32 bytes long.
        EncodingError: `json.not_canonical`: a text holds what has no canonical form.
    """
    return digest384("measurement", *_fields(image_root, argv, env, cwd))


def sgx_measurement(image_root: bytes, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> bytes:
    """Give the 32-byte measurement of a simulated enclave (MRENCLAVE).

    Raises:
        ValueError: the image root is not 32 bytes long.
        EncodingError: `json.not_canonical`: a text holds what has no canonical form.
    """
    return digest256("measurement", *_fields(image_root, argv, env, cwd))


def _fields(image_root: bytes, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> tuple[bytes, ...]:
    if len(image_root) != _ROOT_BYTES:
        raise ValueError("an image root has 32 bytes")
    arguments, environment = strict_json.encode(list(argv)), strict_json.encode(dict(env))
    return image_root, arguments, environment, cwd.encode("utf-8")
