"""What a restored machine is given once it has its name: MAC addresses, custom attributes, tags.

Another machine may have held the addresses until then, and the vCenter may know neither attribute nor tag: whatever
cannot be given is a sentence for the user, and the machine is whole without it. Given twice it is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyVmomi import vim

from reconciler.base import errors
from reconciler.sources.vsphere.connections import properties
from reconciler.sources.vsphere.inventory import tags
from reconciler.sources.vsphere.rebuilding import orders, specs


def give(order: orders.Order, machine: Any) -> list[str]:
    """Give them to a ``vim.VirtualMachine``; a sentence on each thing that it lacks."""
    said = []
    try:
        _addresses(order, machine)
    except errors.SourceError as error:
        said.append(f"its network cards have other MAC addresses than before: {error.message}")
    for what, lacking_of in (("custom attribute", _attributes), ("tag", _tags)):
        try:
            lacking = lacking_of(order, machine)
        except errors.SourceError as error:
            said.append(f"{what}s were not set: {error.message}")
            continue
        if lacking:
            said.append(f"VCenter {order.session.name} has no {what} {', '.join(lacking)}: not set")
    return said


def _addresses(order: orders.Order, machine: Any) -> None:
    doing = f"{order.doing}: MAC addresses"
    if order.identity != "same" or not order.blueprint.nics:
        return
    shown = properties.of(order.session, machine, ("config.hardware.device",), doing)
    changes = specs.addresses(shown.get("config.hardware.device") or (), order.blueprint)
    if changes:
        change = vim.vm.ConfigSpec(deviceChange=changes)
        properties.wait(order.session, order.session.act(doing, lambda: machine.ReconfigVM_Task(change)), doing)


def _attributes(order: orders.Order, machine: Any) -> list[str]:
    """Set them; those that the vCenter has no field for."""
    session, wanted = order.session, order.blueprint.attributes
    if not wanted:
        return []
    doing = f"{order.doing}: custom attributes"
    manager = session.content.customFieldsManager
    if manager is None:
        # A single ESX host has none.
        return sorted(wanted)
    fields = properties.of(session, manager, ("field",), doing).get("field") or ()
    keys = {str(one.name): one.key for one in fields if one.managedObjectType in (None, vim.VirtualMachine)}
    for name in sorted(wanted.keys() & keys.keys()):
        session.act(doing, _set_field(manager, machine, keys[name], wanted[name]))
    return sorted(wanted.keys() - keys.keys())


def _set_field(manager: Any, machine: Any, key: int, value: str) -> Callable[[], Any]:
    return lambda: manager.SetField(machine, key, value)


def _tags(order: orders.Order, machine: Any) -> list[str]:
    """Attach them; those that the vCenter does not have."""
    wanted = order.blueprint.tags
    return tags.attach(order.session, str(machine._moId), wanted) if wanted else []
