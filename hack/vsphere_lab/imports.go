package main

import (
	"fmt"
	"os"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// importVApp makes a machine from a specification and opens a lease that takes the content of the disks made with it.
// The machine stays locked until the lease is complete, and goes if it ends in any other way.
func importVApp(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.ImportVApp)
	spec, ok := req.Spec.(*types.VirtualMachineImportSpec)
	if !ok {
		return nil, faultOf(&types.InvalidArgument{InvalidProperty: "spec"}, "A specified parameter was not correct: spec")
	}
	center := c.lab.datacenter(datacenterOf(req.This))
	if center == nil || req.This.Type != "ResourcePool" {
		return nil, notFound(req.This)
	}
	folder := center.VmFolder
	if req.Folder != nil {
		folder = *req.Folder
	}
	m, failed := c.lab.create(folder, spec.ConfigSpec, req.This, req.Host)
	if failed != nil {
		return nil, faultOf(failed, "%s", sayFault(failed))
	}
	wanted, number := emptyDisks(&spec.ConfigSpec), -1
	m.mu.RLock()
	files, fault := c.lab.leaseDisks(m, m.Config, func(*types.VirtualDisk) bool {
		number++
		return wanted[number]
	})
	m.mu.RUnlock()
	if fault != nil {
		c.lab.discard(m)
		return nil, fault
	}
	return &types.ImportVAppResponse{Returnval: c.openLease(m, "", files).self}, nil
}

// emptyDisks says of each disk of a specification, in order, whether it is made new and so waits for content.
func emptyDisks(spec *types.VirtualMachineConfigSpec) []bool {
	var found []bool
	for _, one := range spec.DeviceChange {
		change := one.GetVirtualDeviceConfigSpec()
		if disk, ok := change.Device.(*types.VirtualDisk); ok {
			_, raw := disk.Backing.(*types.VirtualDiskRawDiskMappingVer1BackingInfo)
			found = append(found, change.FileOperation != "" && !raw)
		}
	}
	return found
}

// takeContent puts what a body held in the place of a disk's content, which counts as written.
func (l *Lab) takeContent(m *Machine, file *leaseFile, content string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	disk, _ := m.device(file.deviceKey).(*types.VirtualDisk)
	if m.gone || disk == nil {
		return fmt.Errorf("the disk is gone")
	}
	layer := file.layers[0]
	if layer.mapped() {
		// Begun anew: what an earlier body put there is not this one's.
		if err := os.Truncate(layer.Extent, 0); err != nil {
			return err
		}
		if err := layer.fill(content); err != nil {
			return err
		}
	} else if err := os.Rename(content, layer.Extent); err != nil {
		return err
	}
	return l.track(m, disk, layer)
}
