"""What a simulated vendor says of security levels: TCB information and QE identity as Intel writes them.

The defaults describe one platform family that is up to date. The texts are signed as they stand; they are never
written again from a parsed form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

__all__ = [
    "CPU_SVN",
    "FMSPC",
    "PCE_SVN",
    "QE_MISC_SELECT",
    "QE_PRODUCTS",
    "QE_SIGNER",
    "QE_SVN",
    "TEE_TCB_SVN",
    "Statements",
    "TcbLevel",
    "VersionLevel",
    "qe_identity",
    "tcb_info",
]

FMSPC = b"SIMFL\x01"
"""The one simulated platform family."""
CPU_SVN = bytes([4] * 8 + [0] * 8)
PCE_SVN = 13
TEE_TCB_SVN = bytes([5, 1, 2]) + bytes(13)
"""TDX module SVN 5, module version 1, and a late microcode SVN."""
QE_SIGNER = bytes.fromhex("5ec1" * 16)
QE_SVN = 8
QE_MISC_SELECT = 0
QE_PRODUCTS = {"sgx": 1, "tdx": 2}
_UP_TO_DATE = "UpToDate"
_TCB_DATE = 1_735_689_600
"""1 January 2025, the date of every simulated TCB level."""


@dataclass(frozen=True, slots=True)
class TcbLevel:
    """One level of the platform's TCB."""

    components: bytes = CPU_SVN
    tdx_components: bytes = bytes([5, 0, 2]) + bytes(13)
    pce_svn: int = PCE_SVN
    status: str = _UP_TO_DATE
    advisories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionLevel:
    """One level of the quoting enclave or of the TDX module."""

    svn: int
    status: str = _UP_TO_DATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Statements:
    """Everything that TCB information and QE identity say.

    Attributes:
        issued: Unix seconds.
        expires: Unix seconds.
        fmspc: the platform family.
        levels: TCB levels, highest first.
        module_levels: levels of TDX module version 1.
        qe_levels: levels of the quoting enclave.
        evaluation_number: TCB evaluation data number.
        qe_signer: MRSIGNER of the quoting enclave.
    """

    issued: int
    expires: int
    fmspc: bytes = FMSPC
    levels: tuple[TcbLevel, ...] = (TcbLevel(),)
    module_levels: tuple[VersionLevel, ...] = (VersionLevel(TEE_TCB_SVN[0]),)
    qe_levels: tuple[VersionLevel, ...] = (VersionLevel(QE_SVN),)
    evaluation_number: int = 20
    qe_signer: bytes = QE_SIGNER


def tcb_info(kind: str, statements: Statements) -> str:
    """The TCB information text, version 3, for `sgx` or `tdx`."""
    document: dict[str, Any] = {
        "id": kind.upper(),
        "version": 3,
        **_dates(statements),
        "fmspc": statements.fmspc.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": statements.evaluation_number,
    }
    if kind == "tdx":
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        levels = [_version_level(level) for level in statements.module_levels]
        document["tdxModule"] = module
        document["tdxModuleIdentities"] = [{"id": "TDX_01", **module, "tcbLevels": levels}]
    document["tcbLevels"] = [_tcb_level(level, kind) for level in statements.levels]
    return _compact(document)


def qe_identity(kind: str, statements: Statements) -> str:
    """The QE identity text, version 2."""
    return _compact(
        {
            "id": "QE" if kind == "sgx" else "TD_QE",
            "version": 2,
            **_dates(statements),
            "tcbEvaluationDataNumber": statements.evaluation_number,
            "miscselect": f"{QE_MISC_SELECT:08X}",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11" + "00" * 15,
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": statements.qe_signer.hex().upper(),
            "isvprodid": QE_PRODUCTS[kind],
            "tcbLevels": [_version_level(level) for level in statements.qe_levels],
        }
    )


def _tcb_level(level: TcbLevel, kind: str) -> dict[str, Any]:
    tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": svn} for svn in level.components], "pcesvn": level.pce_svn}
    if kind == "tdx":
        tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in level.tdx_components]
    document: dict[str, Any] = {"tcb": tcb, "tcbDate": _date(_TCB_DATE), "tcbStatus": level.status}
    if level.advisories:
        document["advisoryIDs"] = list(level.advisories)
    return document


def _version_level(level: VersionLevel) -> dict[str, Any]:
    return {"tcb": {"isvsvn": level.svn}, "tcbDate": _date(_TCB_DATE), "tcbStatus": level.status}


def _dates(statements: Statements) -> dict[str, str]:
    return {"issueDate": _date(statements.issued), "nextUpdate": _date(statements.expires)}


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _compact(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))
