"""The Directory unit: images as plain files, readable without Holdfast.

``<root>/<client slug>/<image id>/`` holds one image: ``image.json`` (``formats``), and per disk a sparse raw file and
the list of its block digests. The raw file of a disk stored whole has the disk's exact size and can be handed to qemu
or a loop mount as it is. The raw file of an incremental holds the changed blocks in place, and a list says which.
``writers`` makes an image in a temporary folder beside its place and renames it there; ``readers`` reads through a
chain of images; ``unit`` is the StorageUnit port over both.

Write order: each disk's files, fsynced; ``image.json``, fsynced; the temporary folder; rename; the client's folder;
the root. Delete order: rename to a trash name; the client's folder; then the files. What a crash leaves is a folder
whose name begins with a dot: ``.tmp-<image id>-<8 hex>`` or ``.trash-<image id>-<8 hex>``.
"""

from reconciler.storage.directory.unit import DirectoryUnit

__all__ = ["DirectoryUnit"]
