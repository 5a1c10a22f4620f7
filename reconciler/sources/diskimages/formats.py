"""What kind of disk a file is, and which files it may draw in.

A guest writes the bytes of its own raw disk, so it can make that disk begin like a qcow2 whose backing file is any file
of this host. Two rules keep that harmless:

1. The name and the content decide together. Names ending in ``.img .raw .dd .bin .iso`` or ``-flat.vmdk``, and block
   devices, are raw whatever they contain: their bytes are kept exactly, with a warning if they look like a container.
   Names ending in ``.qcow2 .qcow .vmdk .vhdx`` must have that content, else the disk is unreadable. For any other name
   the content alone decides, and vhd, vdi and qed are refused.
2. Nothing outside the machine's own folder is followed, ever: no backing file, no external data file, no extent. Each
   layer is opened with a stated driver, so no tool guesses either.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reconciler.base import errors
from reconciler.sources.diskimages import headers
from reconciler.sources.nbd import qemu

_RAW_ENDINGS = (".img", ".raw", ".dd", ".bin", ".iso", "-flat.vmdk")
_CONTAINER_ENDINGS = {".qcow2": "qcow2", ".qcow": "qcow2", ".vmdk": "vmdk", ".vhdx": "vhdx"}
#: Containers that are told, and not read: as raw disks they would be kept byte for byte and be no use to anybody.
_FOREIGN_ENDINGS = {".vhd": "vhd", ".vdi": "vdi", ".qed": "qed"}
_DEEPEST_CHAIN = 32


class ForeignReference(errors.SourceError):
    """A disk image points at a file outside its machine's folder."""

    retryable = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One file of a chain that can be checked by itself."""

    path: Path
    format: str
    #: Bytes per allocation unit.
    cluster: int
    #: Tree of block drivers that opens this layer without its backing file.
    node: Mapping[str, Any]
    #: Which file holds the data from which offset of the virtual disk on.
    spans: tuple[tuple[int, Path], ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """How to open one disk."""

    #: ``raw``, ``qcow2``, ``vmdk`` or ``vhdx``.
    format: str
    #: Tree of qemu's block drivers, None for raw disks.
    node: Mapping[str, Any] | None
    #: Every file whose bytes are part of the disk, itself first.
    files: tuple[Path, ...]
    #: The files among them that are containers, itself first.
    layers: tuple[Layer, ...] = ()
    #: What the name says, where the content says otherwise and is not believed.
    doubt: str | None = None


def head(path: Path) -> bytes:
    """The first bytes of a file. Raises ``SourceError``."""
    try:
        # Opening a pipe would wait for a writer; disks are files and block devices.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.pread(handle, headers.HEAD, 0)
        finally:
            os.close(handle)
    except OSError as error:
        raise errors.SourceError(f"{path}: {error.strerror}", hint="check the path, and its permissions") from error


def kind(path: Path) -> str:
    """The format of a disk by its name and content, as described above. Raises ``SourceError`` if they contradict."""
    if path.name.lower().endswith(_RAW_ENDINGS):
        return "raw"
    suffix = path.suffix.lower()
    claimed, content = _CONTAINER_ENDINGS.get(suffix), headers.magic(head(path))
    if claimed is None:
        if path.is_block_device():
            return "raw"
        foreign = content if content in _FOREIGN_ENDINGS.values() else _FOREIGN_ENDINGS.get(suffix)
        if foreign is None:
            return content
        raise errors.SourceError(
            f"{path}: a {foreign} file is not read",
            hint="convert it with qemu-img convert -O qcow2; if it is a raw disk, give it a name that ends in .img",
        )
    if claimed != content:
        raise errors.SourceError(
            f"{path}: is no {claimed}: it does not begin like one",
            hint="the file is damaged or truncated; if it is a raw disk, give it a name that ends in .img",
        )
    return claimed


def identify(path: Path, folder: Path) -> Image:
    """How to open the disk at ``path`` of the machine in ``folder``. Raises ``SourceError`` or ``ForeignReference``."""
    format_ = kind(path)
    if format_ == "raw":
        seen = headers.magic(head(path))
        doubt = None
        if seen != "raw":
            doubt = f"{path.name} begins like a {seen}, and is kept byte for byte as the raw disk its name says it is"
        return Image(format="raw", node=None, files=(path,), doubt=doubt)
    files: list[Path] = []
    layers: list[Layer] = []
    try:
        node = _open(path, format_, folder.resolve(), files, layers)
    except errors.SourceError as error:
        if str(path) in error.message:
            raise
        raise type(error)(f"{path}: {error.message}", hint=error.hint) from error
    return Image(format=format_, node=node, files=tuple(files), layers=tuple(layers))


def _file_node(path: Path) -> dict[str, Any]:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise errors.SourceError(f"{path!a}: the name is not valid UTF-8", hint="rename the file") from error
    return {"driver": qemu.file_driver(path), "filename": str(path)}


def _open(path: Path, format_: str, folder: Path, files: list[Path], layers: list[Layer]) -> dict[str, Any]:
    """The tree that opens ``path`` and all below it; adds to ``files`` and ``layers``."""
    if len(files) >= _DEEPEST_CHAIN or any(path.samefile(other) for other in files):
        raise errors.SourceError(f"the chain of backing files below {path.name} is endless or too deep")
    files.append(path)
    node: dict[str, Any] = {"driver": format_, "read-only": True, "force-share": True, "file": _file_node(path)}
    if format_ == "raw":
        return node
    if format_ == "vhdx":
        layers.append(Layer(path=path, format=format_, cluster=1 << 20, node=node, spans=((0, path),)))
        return node
    found = headers.qcow2(head(path)) if format_ == "qcow2" else headers.vmdk(head(path))
    spans: tuple[tuple[int, Path], ...] = ((0, path),)
    if found.data_file is not None:
        data = _inside(found.data_file, path, folder)
        files.append(data)
        spans = ((0, data),)
        node["data-file"] = {"driver": "raw", "read-only": True, "force-share": True, "file": _file_node(data)}
    if found.extents:
        spans = tuple(_vmdk_extents(found.extents, path, folder))
        files += (extent for _, extent in spans)
    node["backing"] = None
    layers.append(Layer(path=path, format=format_, cluster=found.cluster, node=dict(node), spans=spans))
    if found.backing is not None:
        below = _inside(found.backing, path, folder)
        node["backing"] = _open(below, _backing_format(below, found.backing_format), folder, files, layers)
    return node


def _inside(name: str, referrer: Path, folder: Path) -> Path:
    """The file that ``referrer`` names, if it lies in the machine's folder."""
    target = referrer.parent / name
    try:
        mode = target.stat().st_mode
        real = target.resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:
        if not _lexically_inside(target, folder):
            raise _foreign(name, referrer) from error
        raise errors.SourceError(f"{referrer.name} needs {name!a}, which is not there") from error
    if not real.is_relative_to(folder) or not stat.S_ISREG(mode):
        raise _foreign(name, referrer)
    return target


def _lexically_inside(target: Path, folder: Path) -> bool:
    return Path(os.path.normpath(target.parent.resolve() / target.name)).is_relative_to(folder)


def _foreign(name: str, referrer: Path) -> ForeignReference:
    return ForeignReference(
        f"{referrer.name} points at {name!a}, which is no regular file in the machine's folder, and is not followed",
        hint="flatten the image with qemu-img convert, or put what it needs into the machine's folder",
    )


def _vmdk_extents(found: Iterable[headers.Extent], descriptor: Path, folder: Path) -> Iterator[tuple[int, Path]]:
    start = 0
    for extent in found:
        # The vmdk driver resolves these names by itself, so only the plainest form is let through to it.
        if extent.name != Path(extent.name).name or ":" in extent.name or extent.name in (".", ".."):
            raise _foreign(extent.name, descriptor)
        path = _inside(extent.name, descriptor, folder)
        size = path.stat().st_size
        if size < extent.needed:
            raise errors.SourceError(f"{path.name} is truncated: {size} bytes, its descriptor says {extent.needed}")
        yield start, path
        start += extent.length


def _backing_format(path: Path, declared: str | None) -> str:
    if declared is None:
        return kind(path)
    if declared not in ("raw", "qcow2", "vmdk", "vhdx"):
        raise errors.SourceError(f"{path.name} is declared as {declared!a}, which is not supported as a backing file")
    if declared not in ("raw", headers.magic(head(path))):
        raise errors.SourceError(f"{path.name} is declared as {declared}, and does not begin like one")
    return declared


def pieces(path: Path) -> frozenset[str]:
    """Names beside a vmdk descriptor that hold what it describes; none for any other file."""
    found = _references(path)
    return frozenset((*(extent.name for extent in found.extents), *found.companions)) if found else frozenset()


def belonging(path: Path) -> frozenset[str]:
    """Names beside a disk that are part of it, and so no disks of their own.

    What a vmdk descriptor draws in, the layers below a snapshot, and the external data file of a qcow2.
    """
    names: set[str] = set()
    waiting = [path]
    while waiting:
        found = _references(waiting.pop())
        if found is None:
            continue
        below = (name for name in (found.backing, found.data_file) if name)
        for name in (*(extent.name for extent in found.extents), *found.companions, *below):
            beside = path.with_name(os.path.basename(name) or path.name)  # noqa: PTH119  a name may be no path
            if beside.name not in names and _is_beside(path, name):
                names.add(beside.name)
                waiting.append(beside)
    # A chain that comes round to itself is a disk that cannot be read, and is told as one.
    return frozenset(names) if path.name not in names else frozenset()


def _is_beside(path: Path, name: str) -> bool:
    """Whether a name written in a file leads into its own folder."""
    if "/" not in name:
        return True
    try:
        return (path.parent / name).parent.resolve() == path.parent.resolve()
    except (OSError, ValueError, RuntimeError):
        return False


def _references(path: Path) -> headers.References | None:
    """What a container points to; None for all other files, and where it cannot be read: whoever opens it says why."""
    try:
        format_ = kind(path)
        if format_ == "qcow2":
            return headers.qcow2(head(path))
        return headers.vmdk(head(path)) if format_ == "vmdk" else None
    except errors.SourceError:
        return None
