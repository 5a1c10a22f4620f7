"""A stored image as a folder: its disks as raw files, and the files of its guests.

``trees`` is what there is to see, by path, and knows nothing of FUSE; ``fusing`` shows a tree at a mount point and is
the only importer of the FUSE library. ``holdfast mount --at`` puts the two together.
"""
