package main

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// Disks of a machine as a reconfiguration adds, edits and removes them.

// slot finds the controller and the unit of a new disk; without a unit it is the next free one.
func (c *change) slot(index int32, disk *types.VirtualDisk) (types.BaseVirtualDevice, int32, types.BaseMethodFault) {
	key := disk.ControllerKey
	if real, ok := c.keys[key]; ok {
		key = real
	}
	controller := c.m.device(key)
	if controller == nil || busOf(controller) == nil {
		return nil, 0, wrongDevice(index, "device.controllerKey")
	}
	bus := busOf(controller)
	taken := map[int32]bool{7: bus.Name == "scsi"}
	for _, one := range c.m.Config.Hardware.Device {
		own := one.GetVirtualDevice()
		if own.ControllerKey == key && own.UnitNumber != nil {
			taken[*own.UnitNumber] = true
		}
	}
	if disk.UnitNumber != nil && *disk.UnitNumber >= 0 {
		if *disk.UnitNumber >= bus.Units || taken[*disk.UnitNumber] {
			return nil, 0, wrongDevice(index, "device.unitNumber")
		}
		return controller, *disk.UnitNumber, nil
	}
	for unit := int32(0); unit < bus.Units; unit++ {
		if !taken[unit] {
			return controller, unit, nil
		}
	}
	return nil, 0, wrongDevice(index, "device.unitNumber")
}

func (c *change) addDisk(index int32, disk *types.VirtualDisk, operation types.VirtualDeviceConfigSpecFileOperation) types.BaseMethodFault {
	b := backingOf(disk)
	if b == nil {
		return wrongDevice(index, "device.backing")
	}
	controller, unit, fault := c.slot(index, disk)
	if fault != nil {
		return fault
	}
	var layer *Layer
	if operation == "" {
		layer, fault = c.existing(*b.FileName)
	} else {
		layer, fault = c.create(index, disk, operation == types.VirtualDeviceConfigSpecFileOperationReplace)
	}
	if fault != nil {
		return fault
	}
	label := fmt.Sprintf("Hard disk %d", c.m.nextLabel())
	text(b.Mode, "persistent")
	text(b.Sharing, "sharingNone")
	made := diskOn(layer, controller, unit, label, *b.Mode, *b.Sharing)
	if disk.Shares != nil {
		made.Shares = disk.Shares
	}
	temporary := disk.Key
	c.keys[temporary] = made.Key
	c.append(made)
	if err := c.lab.track(c.m, made, layer); err != nil {
		return &types.FileFault{File: err.Error()}
	}
	return nil
}

// existing takes a disk file that is there; one that another running machine writes is locked.
func (c *change) existing(file string) (*Layer, types.BaseMethodFault) {
	layer, err := c.lab.layer(c.m.Center, file)
	if err == nil {
		_, err = c.lab.chain(c.m.Center, file)
	}
	if os.IsNotExist(err) {
		return nil, &types.FileNotFound{FileFault: types.FileFault{File: file}}
	}
	if err != nil {
		return nil, &types.InvalidDiskFormat{}
	}
	if info, err := os.Stat(layer.data()); err != nil || info.Size() < layer.Capacity {
		return nil, &types.FileFault{File: file}
	}
	if holder := c.lab.holder(c.m.Center, file); holder != "" && holder != c.m.Moref {
		return nil, &types.FileLocked{FileFault: types.FileFault{File: file}}
	}
	return layer, nil
}

func (c *change) create(index int32, disk *types.VirtualDisk, replace bool) (*Layer, types.BaseMethodFault) {
	b := backingOf(disk)
	want := NewDisk{Center: c.m.Center, Kind: "flat", Size: disk.CapacityInBytes, Thin: true}
	if want.Size == 0 {
		want.Size = disk.CapacityInKB * 1024
	}
	switch one := disk.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		want.Thin = one.ThinProvisioned != nil && *one.ThinProvisioned
	case *types.VirtualDiskSeSparseBackingInfo:
		want.Kind = "sparse"
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		want.Kind = "rdm"
		device, size := c.lab.lun(one.DeviceName)
		if device == "" {
			return nil, wrongDevice(index, "device.backing.deviceName")
		}
		want.Size = size
		want.Rdm = &RdmConfig{Compatibility: one.CompatibilityMode, Lun: one.DeviceName, Device: device}
	}
	if want.Size <= 0 || want.Size%sector != 0 {
		return nil, wrongDevice(index, "device.capacityInKB")
	}
	file, fault := c.fileFor(*b.FileName)
	if fault != nil {
		return nil, fault
	}
	want.Path = file
	if replace {
		if old, err := c.lab.layer(c.m.Center, file); err == nil {
			_ = removeLayer(old)
		}
	}
	layer, err := c.lab.makeDisk(want)
	if os.IsExist(err) {
		return nil, &types.FileAlreadyExists{FileFault: types.FileFault{File: file}}
	}
	if err != nil {
		return nil, &types.FileFault{File: err.Error()}
	}
	c.made = append(c.made, layer)
	return layer, nil
}

// fileFor names a new disk's file: as asked, or the next free name beside the machine's vmx on the datastore asked for.
func (c *change) fileFor(asked string) (string, types.BaseMethodFault) {
	ownStore, own, _ := splitPath(c.m.Config.Files.VmPathName)
	store, file := ownStore, ""
	if asked != "" {
		var err error
		if store, file, err = splitPath(asked); err != nil {
			return "", &types.InvalidDatastorePath{DatastorePath: asked}
		}
	}
	if c.lab.store(c.m.Center, store) == nil {
		return "", &types.InvalidDatastorePath{DatastorePath: asked}
	}
	if strings.HasSuffix(file, ".vmdk") {
		if local, _, err := c.lab.local(c.m.Center, asked); err == nil {
			if _, err := os.Stat(path.Dir(local)); err != nil && path.Dir(file) != path.Dir(own) {
				return "", &types.FileNotFound{FileFault: types.FileFault{File: asked}}
			}
		}
		return joinPath(store, file), nil
	}
	return c.lab.freeName(c.m, store), nil
}

// lun finds the content and the size of a LUN by its name, among those that machines were configured with.
func (l *Lab) lun(name string) (string, int64) {
	for _, machine := range l.config.Machines {
		for _, one := range machine.Disks {
			if one.Rdm == nil || one.Rdm.Lun != name || one.Rdm.Device == "" {
				continue
			}
			if info, err := os.Stat(one.Rdm.Device); err == nil {
				return one.Rdm.Device, info.Size() / sector * sector
			}
		}
	}
	return "", 0
}

func (c *change) remove(index int32, spec *types.VirtualDeviceConfigSpec) types.BaseMethodFault {
	key := spec.Device.GetVirtualDevice().Key
	device := c.m.device(key)
	if device == nil {
		return wrongDevice(index, "device.key")
	}
	var kept []types.BaseVirtualDevice
	for _, one := range c.m.Config.Hardware.Device {
		if one.GetVirtualDevice().ControllerKey == key && busOf(device) != nil {
			return wrongDevice(index, "device.key") // something still sits on it
		}
		if one != device {
			kept = append(kept, one)
		}
	}
	c.m.Config.Hardware.Device = kept
	disk, ok := device.(*types.VirtualDisk)
	if !ok {
		return nil
	}
	if t := c.m.Disks[key]; t != nil {
		t.close()
		delete(c.m.Disks, key)
		_ = os.Remove(c.lab.trackingPath(c.m, key))
	}
	if spec.FileOperation != types.VirtualDeviceConfigSpecFileOperationDestroy {
		return nil
	}
	_, referenced, _ := c.lab.layersOf(c.m, nil)
	layers, err := c.lab.chain(c.m.Center, *backingOf(disk).FileName)
	if err != nil {
		return &types.FileFault{File: err.Error()}
	}
	for _, y := range layers {
		if referenced[y.Path] {
			break // a snapshot needs it and all below
		}
		c.dead = append(c.dead, y)
	}
	return nil
}

func (c *change) edit(index int32, device types.BaseVirtualDevice) types.BaseMethodFault {
	key := device.GetVirtualDevice().Key
	old := c.m.device(key)
	if old == nil {
		return wrongDevice(index, "device.key")
	}
	disk, ok := device.(*types.VirtualDisk)
	if ok {
		return c.editDisk(index, old.(*types.VirtualDisk), disk)
	}
	for i, one := range c.m.Config.Hardware.Device {
		if one == old {
			c.m.Config.Hardware.Device[i] = device
		}
	}
	return nil
}

func (c *change) editDisk(index int32, old, disk *types.VirtualDisk) types.BaseMethodFault {
	size := disk.CapacityInBytes
	if size == 0 || size == old.CapacityInBytes && disk.CapacityInKB*1024 != size {
		size = disk.CapacityInKB * 1024
	}
	if b := backingOf(disk); b != nil {
		*backingOf(old).Mode = *b.Mode
		if *b.Sharing != "" {
			*backingOf(old).Sharing = *b.Sharing
		}
	}
	if size == 0 || size == old.CapacityInBytes {
		return nil
	}
	if size < old.CapacityInBytes || len(c.m.Snapshots) > 0 {
		return &types.InvalidDeviceOperation{InvalidDeviceSpec: types.InvalidDeviceSpec{DeviceIndex: index,
			InvalidVmConfig: types.InvalidVmConfig{Property: "virtualDeviceSpec.device.capacityInKB"}},
			BadOp: types.VirtualDeviceConfigSpecOperationEdit}
	}
	if err := c.lab.resize(c.m, old, size); err != nil {
		return &types.FileFault{File: err.Error()}
	}
	return nil
}

// resize makes a disk larger, with the map of a delta and the epochs of its blocks.
func (l *Lab) resize(m *Machine, disk *types.VirtualDisk, size int64) error {
	y, err := l.layer(m.Center, *backingOf(disk).FileName)
	if err != nil {
		return err
	}
	if y.mapped() {
		return fmt.Errorf("%s is no flat file", y.Path)
	}
	if err := os.Truncate(y.data(), size); err != nil {
		return err
	}
	y.Capacity = size
	if err := y.write(); err != nil {
		return err
	}
	if t := m.Disks[disk.Key]; t != nil {
		// As on a host, the old change ids mean nothing for a resized disk.
		t.close()
		if err := os.Truncate(l.trackingPath(m, disk.Key), blocks(size)*4); err != nil {
			return err
		}
		if err := t.open(l.trackingPath(m, disk.Key)); err != nil {
			return err
		}
		t.Uuid = ""
		t.restart()
	}
	disk.CapacityInBytes, disk.CapacityInKB = size, size/1024
	return nil
}
