"""Attachments of images: documents beside the disks, as ordered lists of pages, each proven by its own digest.

What every unit type owes an attachment whatever it stores it as: names and pages that are fit to be stored, the words
in which a damaged one is told of, and reading one back as ``verify`` does. The units' own modules know how it lies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol, TypeVar

from reconciler.base import digests, errors, meters
from reconciler.storage import units


class _HasName(Protocol):
    @property
    def name(self) -> str:
        """What the attachment is called."""


_Named = TypeVar("_Named", bound=_HasName)
#: Bytes of a page, at most.
PAGE_LIMIT: Final = 1 << 20
#: Pages of one attachment, at most; a count.
PAGES_LIMIT: Final = 1 << 17

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}\Z")


def is_name(name: str) -> bool:
    """Whether an attachment may be called so."""
    return bool(_NAME.match(name))


def require_name(name: str) -> None:
    """Raise ``ValueError`` for what no attachment may be called."""
    if not is_name(name):
        raise ValueError(f"an attachment cannot be called {name!r}")


def checked(name: str, pages: Iterable[bytes]) -> Iterator[bytes]:
    """``pages`` as they come. Raises ``ValueError`` where one is empty or too long, or where there are too many."""
    for number, page in enumerate(pages):
        if not 0 < len(page) <= PAGE_LIMIT or number >= PAGES_LIMIT:
            raise ValueError(f"attachment {name}: page {number} has {len(page)} bytes, or is one too many")
        yield page


def proven(image: str, name: str, number: int, page: units.Page, data: bytes) -> bytes:
    """``data`` where it is what ``page`` says. Raises ``AttachmentDamaged``."""
    if len(data) != page.size or digests.digest(data) != page.digest:
        raise damaged(image, name, number, "it contradicts its digest")
    return data


def damaged(image: str, name: str, number: int, cause: object) -> errors.AttachmentDamaged:
    """The error for one page."""
    return errors.AttachmentDamaged(
        f"image {image}, attachment {name}: page {number} is damaged: {cause}", hint="use another copy of the image"
    )


def unlisted(image: str, name: str, cause: object) -> errors.AttachmentDamaged:
    """The error for an attachment of which not even the pages are known."""
    return errors.AttachmentDamaged(
        f"image {image}, attachment {name}: the list of its pages is damaged: {cause}",
        hint="use another copy of the image",
    )


def put(there: Sequence[_Named], one: _Named) -> tuple[_Named, ...]:
    """``there`` with ``one`` in the place of the attachment of its name, or behind them all."""
    found = tuple(one if each.name == one.name else each for each in there)
    return found if one in found else (*found, one)


def damage(image: str, name: str, offset: int, length: int, message: str) -> units.Damage:
    """A finding; ``offset`` and ``length`` in the pages put together, ``length`` 0 where that is not known."""
    return units.Damage(image=image, disk=name, offset=offset, length=length, message=message, attachment=True)


def missing(image: str, name: str, names: Iterable[str]) -> errors.NotFound:
    """The error for an attachment that an image does not have."""
    there = ", ".join(names)
    return errors.NotFound(
        f"image {image} has no attachment {name}", hint=f"it has {there}" if there else "it has none"
    )


def prove(image: units.StoredImage, meter: meters.Meter) -> tuple[units.Damage, ...]:
    """Read back every page of every attachment; what is damaged, at its place in the pages put together.

    Raises ``Cancelled`` and ``UnitError`` kinds that are no damage.
    """
    found: list[units.Damage] = []
    for name in image.attachments():
        try:
            attachment = image.attachment(name)
        except errors.ImageDamaged as error:
            found.append(damage(image.label.id, name, 0, 0, error.message))
            continue
        offset = 0
        for number, page in enumerate(attachment.pages):
            meter.check()
            try:
                attachment.read(number)
            except errors.ImageDamaged as error:
                found.append(damage(image.label.id, name, offset, page.size, error.message))
            offset += page.size
    return tuple(found)
