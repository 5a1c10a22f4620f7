"""Virtual machines of a vCenter, read off-host from snapshots; the only package that knows pyVmomi.

``sessions`` and ``properties`` are the way to the API; ``listings`` says what machines there are and ``selections``
which of them a policy means. ``freezing`` makes a reading of one: ``snapshots`` and ``tracking`` at the vCenter,
``parts`` opens its disks by ``transports``, ``watches`` and ``verdicts`` look whether it is still worth reading, and
``changes`` decides what an incremental may leave out.
"""
