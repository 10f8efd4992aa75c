"""Properties of the sealed image's manifest codec and path rules."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from secfl.errors import EncodingError
from secfl.volume.image_manifest import (
    DIGEST_BYTES,
    FILE_ID_BYTES,
    ImageEntry,
    Kind,
    Mode,
    chunk_count,
    decode_manifest,
    encode_manifest,
)
from secfl.volume.image_paths import check_path, check_target

_NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="/"), max_size=6)


@st.composite
def _manifests(draw: st.DrawFn) -> tuple[Mode, bytes]:
    mode = draw(st.sampled_from(Mode))
    paths = draw(st.lists(st.sampled_from(["a", "a/b", "a/c", "b", "c", "c/d", "c/d/e", "ü"]), unique=True))
    parents = {path.rpartition("/")[0] for path in paths} | {"c"} if "c/d/e" in paths else set()
    entries = []
    known = {""}
    for path in sorted(set(paths) | parents - {""}, key=str.encode):
        if path.rpartition("/")[0] not in known:
            continue
        kind = draw(st.sampled_from(Kind))
        permissions = draw(st.integers(0, 0o777))
        if kind is Kind.DIRECTORY:
            known.add(path)
            entries.append(ImageEntry(path=path, kind=kind, mode=permissions))
        elif kind is Kind.SYMLINK:
            entries.append(ImageEntry(path=path, kind=kind, mode=permissions, target=draw(st.sampled_from("xyz"))))
        else:
            size = draw(st.integers(0, 200_000))
            encrypted = mode is Mode.ENCRYPTED
            identity = len(entries).to_bytes(FILE_ID_BYTES, "big") if encrypted else b""
            identity = b"\1" + identity[1:] if encrypted else b""
            entries.append(
                ImageEntry(
                    path=path,
                    kind=kind,
                    mode=permissions,
                    size=size,
                    file_id=identity,
                    digest=bytes(DIGEST_BYTES) if encrypted else b"",
                    chunk_digests=b"" if encrypted else bytes(DIGEST_BYTES * chunk_count(size)),
                )
            )
    return mode, encode_manifest(mode, entries)


@given(_manifests())
def test_an_accepted_manifest_encodes_to_the_same_bytes(case: tuple[Mode, bytes]) -> None:
    """There is one encoding per list of entries."""
    mode, body = case
    assert encode_manifest(mode, decode_manifest(mode, body)) == body


@given(_manifests(), st.data())
def test_a_changed_manifest_is_refused_or_still_canonical(case: tuple[Mode, bytes], data: st.DataObject) -> None:
    """Whatever bytes come, the decoder gives one error class or a list that encodes to the same bytes."""
    mode, body = case
    at = data.draw(st.integers(0, len(body) - 1))
    changed = bytearray(body)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        entries = decode_manifest(mode, bytes(changed))
    except EncodingError:
        return
    assert encode_manifest(mode, entries) == changed


@given(_manifests(), st.data())
def test_a_cut_or_lengthened_manifest_is_refused(case: tuple[Mode, bytes], data: st.DataObject) -> None:
    """No prefix and no extension of a manifest is a manifest."""
    mode, body = case
    other = data.draw(st.sampled_from([body[: data.draw(st.integers(0, len(body) - 1))], body + b"\0"]))
    try:
        decode_manifest(mode, other)
    except EncodingError as error:
        assert error.code.startswith("image.")  # noqa: PT017 - one class, any of its codes
    else:
        raise AssertionError("accepted")


@given(st.sampled_from(Mode), st.binary(max_size=300))
def test_any_bytes_give_entries_or_an_encoding_error(mode: Mode, body: bytes) -> None:
    """The decoder never fails in another way."""
    try:
        entries = decode_manifest(mode, body)
    except EncodingError:
        return
    assert encode_manifest(mode, entries) == body


@given(st.lists(_NAMES, min_size=1, max_size=4), st.lists(st.sampled_from(["..", ".", "a", "", "b"]), max_size=6))
def test_an_accepted_link_stays_inside_whatever_links_it_passes(parts: list[str], steps: list[str]) -> None:
    """An accepted target never climbs above the image, even if each named part led to the image's own root."""
    path, target = "/".join(parts), "/".join(steps)
    try:
        check_target(check_path(path), target)
    except EncodingError:
        return
    depth = path.count("/")
    for step in steps:
        assert step not in ("", ".")
        # The worst other link leads to the root directory itself.
        depth = depth - 1 if step == ".." else 0
        assert depth >= 0
