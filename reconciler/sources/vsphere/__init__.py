"""Virtual machines of a vCenter, read off-host from snapshots; the only package that knows pyVmomi.

``machines``     the source itself: what a policy selects, and one machine frozen
``connections``  trust, login, calls, and the services beside the API
``inventory``    what there is at a vCenter, and which of it a policy means
``reading``      one machine under a snapshot of ours; start at ``reading.freezing``, then ``reading.changes``
``transports``   ways to the bytes of a frozen disk; ``transports.ports`` says what each promises
``blueprints``   a machine on paper, and as a folder
``rebuilding``   a machine made again from its blueprint and an image's disks

Leases give and take disks as ``sources.vmdk`` has them.
"""
