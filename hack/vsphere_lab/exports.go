package main

import (
	"fmt"
	"os"
	"path"
	"reflect"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// The calls that open leases: ExportVm, ExportSnapshot and ImportVApp. What they make of a machine is in leases.go.

func init() {
	methods["ExportVm"] = exportVm
	methods["ExportSnapshot"] = exportSnapshot
	methods["ImportVApp"] = importVApp
	for _, name := range []string{"HttpNfcLeaseProgress", "HttpNfcLeaseComplete", "HttpNfcLeaseAbort", "HttpNfcLeaseGetManifest"} {
		methods[name] = func(c *call) (interface{}, *soap.Fault) { return c.lab.leaseCall(c.body) }
	}
}

func exportVm(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.ExportVm)
	m := c.lab.machine(req.This)
	if m == nil {
		return nil, notFound(req.This)
	}
	m.ops.Lock()
	defer m.ops.Unlock()
	if fault := c.lab.leaseBlocks(m.Moref); fault != nil {
		return nil, fault
	}
	m.mu.RLock()
	power := m.Power
	files, fault := c.lab.exported(m, m.Config, func(disk *types.VirtualDisk) bool { return !physical(disk) })
	m.mu.RUnlock()
	if power != "poweredOff" {
		return nil, faultOf(&types.InvalidPowerState{
			RequestedState: "poweredOff", ExistingState: types.VirtualMachinePowerState(power),
		}, "The attempted operation cannot be performed in the current state (Powered on).")
	}
	if fault != nil {
		return nil, fault
	}
	return &types.ExportVmResponse{Returnval: c.openLease(m, "", files).self}, nil
}

func exportSnapshot(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.ExportSnapshot)
	m := c.lab.ownerOf(req.This)
	if m == nil {
		return nil, notFound(req.This)
	}
	m.ops.Lock()
	defer m.ops.Unlock()
	if fault := c.lab.leaseBlocks(m.Moref); fault != nil {
		return nil, fault
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	one := m.snapshot(req.This.Value)
	if one == nil {
		return nil, notFound(req.This)
	}
	files, fault := c.lab.exported(m, one.Config, snapshotted)
	if fault != nil {
		return nil, fault
	}
	return &types.ExportSnapshotResponse{Returnval: c.openLease(m, req.This.Value, files).self}, nil
}

func physical(disk *types.VirtualDisk) bool {
	rdm, ok := disk.Backing.(*types.VirtualDiskRawDiskMappingVer1BackingInfo)
	return ok && rdm.CompatibilityMode == "physicalMode"
}

// exported lists the files that a configuration gives to fetch: the wanted disks, then the nvram.
func (l *Lab) exported(m *Machine, config *types.VirtualMachineConfigInfo, wanted func(*types.VirtualDisk) bool) ([]*leaseFile, *soap.Fault) {
	files, fault := l.leaseDisks(m, config, wanted)
	if fault != nil {
		return nil, fault
	}
	inside := l.nvramPath(m)
	if local, _, err := l.local(m.Center, inside); err == nil {
		if _, err := os.Stat(local); err == nil {
			files = append(files, &leaseFile{name: path.Base(inside), key: "nvram", path: local})
		}
	}
	return files, nil
}

func (l *Lab) leaseDisks(m *Machine, config *types.VirtualMachineConfigInfo, wanted func(*types.VirtualDisk) bool) ([]*leaseFile, *soap.Fault) {
	var files []*leaseFile
	for _, disk := range disksOf(config) {
		b := backingOf(disk)
		if b == nil || !wanted(disk) {
			continue
		}
		layers, err := l.chain(m.Center, *b.FileName)
		if err != nil {
			return nil, fileFault(*b.FileName, "%s", err)
		}
		files = append(files, &leaseFile{
			name: fmt.Sprintf("disk-%d.vmdk", len(files)), key: deviceName(config, disk), disk: true, layers: layers, deviceKey: disk.Key,
		})
	}
	return files, nil
}

// deviceName is how leases name a device: "ParaVirtualSCSIController0:0".
func deviceName(config *types.VirtualMachineConfigInfo, disk *types.VirtualDisk) string {
	for _, one := range config.Hardware.Device {
		if own := one.GetVirtualDevice(); own.Key == disk.ControllerKey && disk.UnitNumber != nil {
			bus := one.(types.BaseVirtualController).GetVirtualController().BusNumber
			return fmt.Sprintf("%s%d:%d", reflect.TypeOf(one).Elem().Name(), bus, *disk.UnitNumber)
		}
	}
	return fmt.Sprintf("VirtualDisk:%d", disk.Key)
}
