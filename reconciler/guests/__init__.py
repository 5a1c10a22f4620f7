"""Read-only file systems inside a Disk, parsed in a child process with limits.

Its products are ``base.layouts.Layout`` values, made once per disk by ``operations`` and handed to the segmenter and to
the file index alike.
"""
