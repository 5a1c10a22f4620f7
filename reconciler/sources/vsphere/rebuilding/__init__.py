"""Making a machine again from its blueprint and the disks of an image.

``places`` says where, ``specs`` what, ``importing``, ``uploading`` and ``vddkwriting`` write its disks, ``building`` is
the whole way from a half-made machine (``halfmade``) to a proven one that takes its name.
"""
