"""Holdfast: backups that converge.

Desired state (policies, storage units, lifecycles, retention) lives in versioned YAML; a control loop compares it with
the catalog and runs backups, duplications and expirations until the two agree.

The house, in reading order. A package imports only from layers below its own; ``hack/check`` proves it.

``planning``    every decision as a pure function; start at ``planning.planner``
``base``        the floor: errors, times, digests, and the one port for bytes, ``base.disks.Disk``
``operations``  backup, duplicate, expire, restore: each composes a source, a unit and the catalog
``api``         the words users write, and the JSON that commands print
``intake``      YAML with line and column, references, revisions
``catalog``     what is: images, copies, jobs, applied state, audit
``sources``     where bytes come from, and where a restore puts them
``storage``     where bytes stay: Directory units and DedupePools
``guests``      read-only file systems inside a Disk
``jobs``        durable execution of callables it is given
``controller``  the loop: observe, plan, dispatch, status
``reports``     text from the machine form
``cli``         the ``holdfast`` command
"""

__version__ = "0.1.0"
