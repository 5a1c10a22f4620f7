"""What is applied, seen and known: the configuration in force, the machines its sources show, the units it uses.

One door for the controller and the reports; the rooms behind it are ``configurations``, ``machines``, ``snapshots``,
``standings`` and ``legalholds``.
"""

from __future__ import annotations

from reconciler.catalog import configurations, legalholds, machines, standings
from reconciler.catalog import snapshots as noted_snapshots

apply_configuration = configurations.apply_configuration
applied = configurations.applied
in_force = configurations.in_force
rebuilt = configurations.rebuilt
anchors = configurations.anchors
promises = configurations.promises
owed = configurations.owed

standing = standings.read
settle_holds = legalholds.settle

snapshots = noted_snapshots.noted

KnownUnit = machines.KnownUnit
see_machines = machines.see_machines
inventories = machines.inventories
clients = machines.clients
find_client = machines.find_client
known_units = machines.known_units
learn_unit = machines.learn_unit
