"""The kinds of place that a restored disk may have: raw files, images that qemu writes, VMDKs, block devices.

``sources.targets`` is the door; what is here is one module a kind, and what they share.
"""
