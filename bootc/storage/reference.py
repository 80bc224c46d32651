# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What stands behind `containers-storage:`, and which image a name means.

    [ "[" [driver "@"] graphroot ["+" runroot] [":" options] "]" ] name

(containers-transports(5)). The options, separated by commas, are those of STORAGE_OPTS. `name` is a
name with or without tag, `NAME@sha256:…`, `NAME@ID`, or an id, whole or its beginning.

A name means the image that has it; else with `:latest`, or as a short name of Docker's
(`docker.io/library/…`); else the one that ends in it after a slash, or whose id begins with it.
Several candidates of the same rank are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bootc.errors import BootcError
from bootc.storage.options import parse_store_options
from bootc.storage.records import ImageRecord

_HEX = re.compile(r"[0-9a-f]+\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_PREFIX_MIN = 3
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageReference:
    """`graphroot` is None for the machine's own stores; `additional` are read-only ones."""

    name: str
    driver: str = ""
    graphroot: str | None = None
    additional: tuple[str, ...] = ()


def parse_reference(text: str) -> StorageReference:
    """Read what follows `containers-storage:`. Raises `BootcError`."""
    hint = "write containers-storage:NAME or containers-storage:[overlay@GRAPHROOT+RUNROOT]NAME"
    if not text.startswith("["):
        name, store = text, None
    else:
        store, bracket, name = text[1:].partition("]")
        if not bracket:
            raise BootcError(f"{text!r} lacks a closing bracket", hint=hint)
    if not name:
        raise BootcError(f"{text!r} names no image", hint=hint)
    if store is None:
        return StorageReference(name=name)
    place, _, options = store.partition(":")
    driver, at, folders = place.rpartition("@")
    graphroot = folders.partition("+")[0] if at or "/" in folders else ""
    if not graphroot.startswith("/"):
        raise BootcError(f"{text!r} names no absolute folder of a store", hint=hint)
    return StorageReference(
        name=name,
        driver=driver,
        graphroot=graphroot,
        additional=tuple(parse_store_options(options)),
    )


Match = Callable[[ImageRecord], bool]


def choose_image(
    name: str, stores: Sequence[tuple[ImageRecord, ...]], what: str
) -> tuple[int, ImageRecord]:
    """(number of the store, image) that `name` means; `what` names the stores in errors.

    Ranks go before stores, so an exact name in the last store wins over a suffix in the first.
    """
    for matches in _ranks(name):
        for number, images in enumerate(stores):
            found = {image.id: image for image in images if matches(image)}
            if len(found) > 1:
                raise _ambiguous(name, found)
            for image in found.values():
                return number, image
    raise BootcError(
        f"there is no image {name} in {what}",
        hint="`podman images` lists what is there; `podman pull` gets more",
    )


def _ambiguous(name: str, found: dict[str, ImageRecord]) -> BootcError:
    called = sorted(", ".join(image.names) or image.id[:12] for image in found.values())
    more = f" and {len(called) - _SHOWN} more" if len(called) > _SHOWN else ""
    return BootcError(
        f"{name} may mean {len(found)} images: {'; '.join(called[:_SHOWN])}{more}",
        hint="write the whole name, or the whole id",
    )


def _ranks(name: str) -> Iterator[Match]:
    """What an image may be meant by, the surest first."""
    base, at, pin = name.rpartition("@")
    if at:
        wanted = pin if _DIGEST.match(pin) else None
        if wanted is None and not _HEX.match(pin):
            raise BootcError(
                f"{name!r}: after @ there is neither a digest nor an id",
                hint="write NAME@sha256:… with 64 hexadecimal digits, or NAME@ID",
            )
        for matches in _named(base) if base else [_any]:
            if wanted is not None:
                # It may have been pulled by this digest, without a tag, or by a tag.
                yield _all(matches, _with_digest(wanted))
                yield _all(_of_repository(base), _with_digest(wanted))
            else:
                yield _all(matches, _with_id(pin))
        return
    bare = name.removeprefix("sha256:")
    yield lambda image: name in image.names or image.id == bare
    ranks = list(_named(name))
    yield from ranks[1:-1]
    suffix = ranks[-1]
    prefix = _with_id(bare)
    if _HEX.match(bare) and len(bare) >= _PREFIX_MIN:
        yield lambda image: suffix(image) or prefix(image)
    else:
        yield suffix


def _named(name: str) -> list[Match]:
    """By its exact name, by its full name, by the end of its name."""
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    first, slash, _ = tagged.partition("/")
    if not slash:
        full = f"docker.io/library/{tagged}"
    elif not (set(first) & set(".:") or first == "localhost"):
        full = f"docker.io/{tagged}"
    else:
        full = tagged
    ends = (f"/{name}", f"/{tagged}")
    return [
        lambda image: name in image.names,
        lambda image: tagged in image.names,
        lambda image: full in image.names,
        lambda image: any(known.endswith(ends) for known in image.names),
    ]


def _any(image: ImageRecord) -> bool:
    return True


def _all(first: Match, second: Match) -> Match:
    return lambda image: first(image) and second(image)


def _with_id(prefix: str) -> Match:
    return lambda image: image.id.startswith(prefix)


def _with_digest(digest: str) -> Match:
    return lambda image: digest == image.digest or f"manifest-{digest}" in image.data


def _of_repository(base: str) -> Match:
    def repository(name: str) -> str:
        plain = name.partition("@")[0]
        head, slash, last = plain.rpartition("/")
        return head + slash + last.partition(":")[0]

    wanted = repository(base)
    ends = f"/{wanted}"
    return lambda image: any(
        known == wanted or known.endswith(ends) for known in map(repository, image.names)
    )
