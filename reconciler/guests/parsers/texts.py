"""Names in UTF-16 as text and back.

What is no Unicode, a surrogate without its other half, becomes the undecodable bytes that a mount of the file system
under Linux shows for it, so that every name can be given to the operating system, whatever file system it comes from.
"""

from __future__ import annotations


def utf16(data: bytes) -> str:
    """Text for UTF-16 (little-endian). Never raises for an even count of bytes."""
    text = data.decode("utf-16-le", "surrogatepass")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    return text


def units(text: str) -> bytes | None:
    """The UTF-16 for which ``utf16`` gives ``text``; None where there is none."""
    try:
        return (
            text.encode("utf-8", "surrogateescape")
            .decode("utf-8", "surrogatepass")
            .encode("utf-16-le", "surrogatepass")
        )
    except UnicodeError:
        return None
