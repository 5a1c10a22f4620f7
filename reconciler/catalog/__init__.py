"""What is: images and their copies, jobs, machines, the configuration in force, the audit trail.

One SQLite file under the state folder (or a PostgreSQL database). ``database`` opens it, for writing or for reading
without leaving a trace; ``tables`` is the schema, ``migrations`` how it came to be. The rest are the facts by concept:
``inventories`` (configuration and machines), ``images``, ``jobs``, ``requests``, ``approvals``, ``audits``, ``leases``,
``dumps``.
Functions take a ``Database`` and plain values and return plain values; nothing of SQLAlchemy leaves this package.
"""
