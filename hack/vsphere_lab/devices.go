package main

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/vim25/types"
)

// Devices of a machine: controllers, disks and their keys, numbered as ESXi numbers them.

func defaultDevices() []types.BaseVirtualDevice {
	config := &types.VirtualMachineConfigInfo{}
	copyOf(&types.VirtualMachineConfigInfo{Hardware: types.VirtualHardware{Device: esx.VirtualDevice}}, config)
	return config.Hardware.Device
}

// Bus is a kind of controller: the keys of its controllers and of the disks on them.
type Bus struct {
	Name               string
	Controllers, Disks int32
	Units              int32
	Busses             int32
}

var buses = []Bus{
	{Name: "scsi", Controllers: 1000, Disks: 2000, Units: 16, Busses: 4},
	{Name: "sata", Controllers: 15000, Disks: 16000, Units: 30, Busses: 4},
	{Name: "ide", Controllers: 200, Disks: 3000, Units: 2, Busses: 2},
	{Name: "nvme", Controllers: 31000, Disks: 32000, Units: 15, Busses: 4},
}

func busOf(device types.BaseVirtualDevice) *Bus {
	name := ""
	switch device.(type) {
	case types.BaseVirtualSCSIController:
		name = "scsi"
	case types.BaseVirtualSATAController:
		name = "sata"
	case *types.VirtualIDEController:
		name = "ide"
	case *types.VirtualNVMEController:
		name = "nvme"
	}
	for i := range buses {
		if buses[i].Name == name {
			return &buses[i]
		}
	}
	return nil
}

func (m *Machine) device(key int32) types.BaseVirtualDevice {
	for _, one := range m.Config.Hardware.Device {
		if one.GetVirtualDevice().Key == key {
			return one
		}
	}
	return nil
}

func disksOf(config *types.VirtualMachineConfigInfo) []*types.VirtualDisk {
	var found []*types.VirtualDisk
	for _, one := range config.Hardware.Device {
		if disk, ok := one.(*types.VirtualDisk); ok {
			found = append(found, disk)
		}
	}
	return found
}

// diskNamed finds a disk by its label, key, or slot ("scsi0:1").
func (m *Machine) diskNamed(config *types.VirtualMachineConfigInfo, name string) *types.VirtualDisk {
	for i, disk := range disksOf(config) {
		label := ""
		if disk.DeviceInfo != nil {
			label = disk.DeviceInfo.GetDescription().Label
		}
		if name == label || name == fmt.Sprint(disk.Key) || name == slotOf(config, disk) || name == "" && i == 0 {
			return disk
		}
	}
	return nil
}

// slotOf is where a device sits, "scsi0:1".
func slotOf(config *types.VirtualMachineConfigInfo, device types.BaseVirtualDevice) string {
	own := device.GetVirtualDevice()
	for _, one := range config.Hardware.Device {
		if one.GetVirtualDevice().Key != own.ControllerKey || own.UnitNumber == nil {
			continue
		}
		if bus := busOf(one); bus != nil {
			controller := one.(types.BaseVirtualController).GetVirtualController()
			return fmt.Sprintf("%s%d:%d", bus.Name, controller.BusNumber, *own.UnitNumber)
		}
	}
	return ""
}

// controllerFor finds or makes the controller of a slot like "scsi0:1" and gives the unit on it.
func (m *Machine) controllerFor(slot, sharing string) (types.BaseVirtualDevice, int32, error) {
	var number, unit int32
	for i := range buses {
		bus := &buses[i]
		if !strings.HasPrefix(slot, bus.Name) {
			continue
		}
		if _, err := fmt.Sscanf(slot[len(bus.Name):], "%d:%d", &number, &unit); err != nil {
			break
		}
		if number >= bus.Busses || unit >= bus.Units {
			return nil, 0, fmt.Errorf("there is no slot %s", slot)
		}
		key := bus.Controllers + number
		if found := m.device(key); found != nil {
			return found, unit, nil
		}
		made := newController(bus, number, sharing)
		m.Config.Hardware.Device = append(m.Config.Hardware.Device, made)
		return made, unit, nil
	}
	return nil, 0, fmt.Errorf("%q is no slot; write scsi0:0, sata0:0, ide0:0 or nvme0:0", slot)
}

func newController(bus *Bus, number int32, sharing string) types.BaseVirtualDevice {
	base := types.VirtualController{BusNumber: number, VirtualDevice: types.VirtualDevice{
		Key: bus.Controllers + number, ControllerKey: 100}}
	label := fmt.Sprintf("%s controller %d", strings.ToUpper(bus.Name), number)
	base.DeviceInfo = &types.Description{Label: label, Summary: label}
	switch bus.Name {
	case "scsi":
		return &types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
			VirtualController: base, SharedBus: types.VirtualSCSISharing(sharing), ScsiCtlrUnitNumber: 7,
			HotAddRemove: types.NewBool(true)}}
	case "sata":
		return &types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{VirtualController: base}}
	case "nvme":
		return &types.VirtualNVMEController{VirtualController: base}
	}
	base.ControllerKey = 0
	return &types.VirtualIDEController{VirtualController: base}
}

// keyFor is the key that a device on a controller has.
func keyFor(controller types.BaseVirtualDevice, unit int32) int32 {
	bus := busOf(controller)
	if bus == nil {
		return 0
	}
	number := controller.(types.BaseVirtualController).GetVirtualController().BusNumber
	return bus.Disks + number*bus.Units + unit
}

// addConfigured makes one disk of the configuration and puts it into the machine, which is not placed yet.
func (l *Lab) addConfigured(m *Machine, config DiskConfig) error {
	controller, unit, err := m.controllerFor(config.Controller, config.BusSharing)
	if err != nil {
		return err
	}
	layer, err := l.makeDisk(NewDisk{Center: m.Center, Kind: config.Kind, Size: config.SizeBytes, Thin: *config.Thin,
		Path: l.freeName(m, config.Datastore), From: config.From, Rdm: config.Rdm,
		Uuid: diskUuid("configured", m.Center, m.Config.InstanceUuid, config.Label)})
	if err != nil {
		return err
	}
	disk := diskOn(layer, controller, unit, config.Label, config.Mode, config.Sharing)
	m.Config.Hardware.Device = append(m.Config.Hardware.Device, disk)
	return l.track(m, disk, layer)
}

// freeName is the next free name for a disk file in the machine's folder on a datastore: NAME.vmdk, NAME_1.vmdk, ...
func (l *Lab) freeName(m *Machine, store string) string {
	_, own, _ := splitPath(m.Config.Files.VmPathName)
	stem := strings.TrimSuffix(path.Base(own), ".vmx")
	for n := 0; ; n++ {
		name := stem
		if n > 0 {
			name = fmt.Sprintf("%s_%d", stem, n)
		}
		found := joinPath(store, path.Dir(own)+"/"+name+".vmdk")
		local, _, err := l.local(m.Center, found)
		if err != nil {
			return found // whoever makes the disk says what is wrong
		}
		if _, err := os.Stat(local); os.IsNotExist(err) {
			return found
		}
	}
}

// diskOn is the device of a disk file.
func diskOn(y *Layer, controller types.BaseVirtualDevice, unit int32, label, mode, sharing string) *types.VirtualDisk {
	disk := &types.VirtualDisk{CapacityInBytes: y.Capacity, CapacityInKB: y.Capacity / 1024}
	disk.Key, disk.ControllerKey, disk.UnitNumber = keyFor(controller, unit), controller.GetVirtualDevice().Key, &unit
	disk.DeviceInfo = &types.Description{Label: label, Summary: fmt.Sprintf("%d KB", y.Capacity/1024)}
	disk.Shares = &types.SharesInfo{Shares: 1000, Level: types.SharesLevelNormal}
	file := types.VirtualDeviceFileBackingInfo{FileName: y.Path}
	switch {
	case y.raw():
		disk.Backing = &types.VirtualDiskRawDiskMappingVer1BackingInfo{VirtualDeviceFileBackingInfo: file,
			DiskMode: mode, Sharing: sharing, LunUuid: lunUuid(y.Lun), DeviceName: y.Lun,
			CompatibilityMode: map[bool]string{true: "physicalMode", false: "virtualMode"}[y.Kind == "VMFSRDMP"]}
	case y.Kind == "SESPARSE":
		disk.Backing = &types.VirtualDiskSeSparseBackingInfo{VirtualDeviceFileBackingInfo: file, DiskMode: mode,
			WriteThrough: types.NewBool(false)}
	default:
		disk.Backing = &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: file, DiskMode: mode,
			Sharing: sharing, ThinProvisioned: types.NewBool(y.Thin), WriteThrough: types.NewBool(false),
			Split: types.NewBool(false)}
	}
	return disk
}

// lunUuid is the long form that hosts report for a LUN: prefix, the NAA number, and a suffix.
func lunUuid(lun string) string { return "0200000000" + strings.TrimPrefix(lun, "naa.") + "4c554e" }

// backing gives the fields that all kinds of backings share; nil for what is no disk file.
type backing struct {
	FileName, Mode            *string
	Uuid, ChangeId, ContentId *string
	Sharing                   *string
}

func backingOf(disk *types.VirtualDisk) *backing {
	switch b := disk.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		return &backing{&b.FileName, &b.DiskMode, &b.Uuid, &b.ChangeId, &b.ContentId, &b.Sharing}
	case *types.VirtualDiskSeSparseBackingInfo:
		return &backing{&b.FileName, &b.DiskMode, &b.Uuid, &b.ChangeId, &b.ContentId, new(string)}
	case *types.VirtualDiskSparseVer2BackingInfo:
		return &backing{&b.FileName, &b.DiskMode, &b.Uuid, &b.ChangeId, &b.ContentId, new(string)}
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		return &backing{&b.FileName, &b.DiskMode, &b.Uuid, &b.ChangeId, &b.ContentId, &b.Sharing}
	}
	return nil
}

// frozen says whether snapshots take a disk along: not the independent ones, not raw disks in physical mode.
func snapshotted(disk *types.VirtualDisk) bool {
	b := backingOf(disk)
	if b == nil || strings.HasPrefix(*b.Mode, "independent") {
		return false
	}
	rdm, ok := disk.Backing.(*types.VirtualDiskRawDiskMappingVer1BackingInfo)
	return !ok || rdm.CompatibilityMode != "physicalMode"
}

// setChain writes the layers of a disk into its backing: the file itself, and its parents one inside the other.
func setChain(disk *types.VirtualDisk, layers []*Layer) {
	b := backingOf(disk)
	*b.FileName, *b.Uuid, *b.ContentId = layers[0].Path, layers[0].Uuid, "fffffffe"
	disk.CapacityInBytes, disk.CapacityInKB = layers[0].Capacity, layers[0].Capacity/1024
	switch live := disk.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		live.Parent, live.DeltaDiskFormat = nil, ""
		at := live
		for _, one := range layers[1:] {
			at.DeltaDiskFormat = "redoLogFormat"
			parent := *live
			parent.FileName, parent.Parent, parent.DeltaDiskFormat, parent.ChangeId = one.Path, nil, "", ""
			parent.ThinProvisioned = types.NewBool(one.Thin)
			at.Parent = &parent
			at = at.Parent
		}
	case *types.VirtualDiskSeSparseBackingInfo:
		live.Parent, live.DeltaDiskFormat = nil, ""
		at := live
		for _, one := range layers[1:] {
			at.DeltaDiskFormat = "seSparseFormat"
			parent := *live
			parent.FileName, parent.Parent, parent.DeltaDiskFormat, parent.ChangeId = one.Path, nil, "", ""
			at.Parent = &parent
			at = at.Parent
		}
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		live.Parent, live.DeltaDiskFormat = nil, ""
		at := live
		for _, one := range layers[1:] {
			at.DeltaDiskFormat = "redoLogFormat"
			parent := *live
			parent.FileName, parent.Parent, parent.DeltaDiskFormat, parent.ChangeId = one.Path, nil, "", ""
			at.Parent = &parent
			at = at.Parent
		}
	}
}

// normalise fills in what a host reports of each disk: size, identity, change id, chain of files.
func (l *Lab) normalise(m *Machine) {
	for _, disk := range disksOf(m.Config) {
		b := backingOf(disk)
		if b == nil {
			continue
		}
		layers, err := l.chain(m.Center, *b.FileName)
		if err != nil {
			l.note("%s: %s", m.Config.Name, err)
			continue
		}
		setChain(disk, layers)
		disk.DiskObjectId = fmt.Sprintf("%d-%d", number(m.Moref), disk.Key)
		*b.ChangeId = ""
		if one := m.Disks[disk.Key]; one != nil && one.Uuid != "" && m.tracking() {
			*b.ChangeId = one.changeId(one.Epoch)
		}
		if disk.DeviceInfo == nil || disk.DeviceInfo.GetDescription().Label == "" {
			label := fmt.Sprintf("Hard disk %d", m.nextLabel())
			disk.DeviceInfo = &types.Description{Label: label}
		}
		label := disk.DeviceInfo.GetDescription().Label
		disk.DeviceInfo = &types.Description{Label: label, Summary: fmt.Sprintf("%d KB", disk.CapacityInKB)}
	}
	m.linkControllers()
}

func (m *Machine) nextLabel() int {
	for n := 1; ; n++ {
		taken := false
		for _, disk := range disksOf(m.Config) {
			if disk.DeviceInfo != nil && disk.DeviceInfo.GetDescription().Label == fmt.Sprintf("Hard disk %d", n) {
				taken = true
			}
		}
		if !taken {
			return n
		}
	}
}

// linkControllers lists on each controller the devices that sit on it.
func (m *Machine) linkControllers() {
	list := object.VirtualDeviceList(m.Config.Hardware.Device)
	for _, one := range list {
		controller, ok := one.(types.BaseVirtualController)
		if !ok {
			continue
		}
		own := controller.GetVirtualController()
		own.Device = nil
		for _, device := range list {
			if device.GetVirtualDevice().ControllerKey == own.Key {
				own.Device = append(own.Device, device.GetVirtualDevice().Key)
			}
		}
	}
}
