"""The DedupePool storage unit: each segment of every disk is kept once, and every image stands alone.

``FORMAT.md`` is the layout on disk with its read and write order. From the bottom up: ``containers``, ``recipes``,
``manifests`` and ``headers`` are bytes; ``journals`` the lock and the log; ``registrations`` who is writing;
``indexes`` the fingerprint cache; ``appenders`` containers being filled; ``stores`` what all users of one pool in
one process share, ``runs`` its reads; ``segmenters`` and ``writers`` the way in, ``images`` the way out; ``marks`` and
``reclaims`` take back space; ``pools`` is the unit itself.
"""
