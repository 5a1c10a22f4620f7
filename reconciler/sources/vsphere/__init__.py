"""Virtual machines of a vCenter, read off-host from snapshots; the only package that knows pyVmomi.

``sessions`` and ``properties`` are the way to the API; ``listings`` says what machines there are and ``selections``
which of them a policy means; ``snapshots``, ``changes`` and ``transports`` are what a reading is made of.
"""
