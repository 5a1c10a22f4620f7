package main

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// change is one reconfiguration on its way: it works on the machine's own configuration, which the caller puts back if
// it fails, and knows what it made, to be removed then, and what is to be removed once it is saved.
type change struct {
	lab    *Lab
	m      *Machine
	keys   map[int32]int32 // the client's temporary keys
	made   []*Layer
	dead   []*Layer
	labels int
}

// macs knows which machine a card's address was given to, for as long as the peer runs.
var macs sync.Map

// configure applies a specification; the caller holds m.mu. What fails leaves nothing behind.
func (l *Lab) configure(m *Machine, spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	if spec.ChangeTrackingEnabled != nil && *spec.ChangeTrackingEnabled && !m.Supported {
		return &types.NotSupported{}
	}
	old := &types.VirtualMachineConfigInfo{}
	copyOf(m.Config, old)
	c := &change{lab: l, m: m, keys: map[int32]int32{}}
	applySpec(m.Config, spec)
	var fault types.BaseMethodFault
	for i, one := range spec.DeviceChange {
		if fault = c.device(int32(i), one.GetVirtualDeviceConfigSpec()); fault != nil {
			break
		}
	}
	if fault == nil && !m.tracking() {
		for _, one := range m.Disks {
			one.Uuid = "" // switched off: what comes after is another tracking
		}
	}
	if fault == nil {
		m.Config.Modified = time.Now().UTC()
		m.Config.ChangeVersion = m.Config.Modified.Format(time.RFC3339Nano)
		if err := l.save(m); err != nil {
			fault = &types.FileFault{File: err.Error()}
		}
	}
	if fault != nil {
		m.Config = old
		c.dead = c.made
		if err := l.retrack(m); err != nil {
			l.note("%s: %s", m.Config.Name, err)
		}
	}
	for _, y := range c.dead {
		if err := removeLayer(y); err != nil {
			l.note("%s: %s", y.Path, err)
		}
	}
	return fault
}

func applySpec(c *types.VirtualMachineConfigInfo, spec *types.VirtualMachineConfigSpec) {
	for _, one := range []struct {
		from string
		to   *string
	}{
		{spec.Name, &c.Name}, {spec.Annotation, &c.Annotation}, {spec.Firmware, &c.Firmware}, {spec.Uuid, &c.Uuid},
		{spec.InstanceUuid, &c.InstanceUuid}, {spec.GuestId, &c.GuestId}, {spec.GuestId, &c.GuestFullName},
		{spec.Version, &c.Version}, {spec.AlternateGuestName, &c.AlternateGuestName}, {spec.LocationId, &c.LocationId},
		{spec.SwapPlacement, &c.SwapPlacement}, {spec.MigrateEncryption, &c.MigrateEncryption},
	} {
		if one.from != "" {
			*one.to = one.from
		}
	}
	for _, one := range []struct {
		from *bool
		to   **bool
	}{
		{spec.ChangeTrackingEnabled, &c.ChangeTrackingEnabled}, {spec.CpuHotAddEnabled, &c.CpuHotAddEnabled},
		{spec.CpuHotRemoveEnabled, &c.CpuHotRemoveEnabled}, {spec.MemoryHotAddEnabled, &c.MemoryHotAddEnabled},
		{spec.NestedHVEnabled, &c.NestedHVEnabled}, {spec.GuestAutoLockEnabled, &c.GuestAutoLockEnabled},
		{spec.MemoryReservationLockedToMax, &c.MemoryReservationLockedToMax}, {spec.VPMCEnabled, &c.VPMCEnabled},
		{spec.VAssertsEnabled, &c.VAssertsEnabled}, {spec.MessageBusTunnelEnabled, &c.MessageBusTunnelEnabled},
	} {
		if one.from != nil {
			*one.to = one.from
		}
	}
	if spec.NumCPUs != 0 {
		c.Hardware.NumCPU = spec.NumCPUs
	}
	if spec.NumCoresPerSocket != 0 {
		c.Hardware.NumCoresPerSocket = spec.NumCoresPerSocket
	}
	if spec.MemoryMB != 0 {
		c.Hardware.MemoryMB = int32(spec.MemoryMB)
	}
	if spec.Flags != nil {
		c.Flags = *spec.Flags
	}
	if spec.Tools != nil {
		c.Tools = spec.Tools
	}
	if spec.BootOptions != nil {
		c.BootOptions = spec.BootOptions
	}
	if spec.CpuAllocation != nil {
		c.CpuAllocation = spec.CpuAllocation
	}
	if spec.MemoryAllocation != nil {
		c.MemoryAllocation = spec.MemoryAllocation
	}
	if spec.LatencySensitivity != nil {
		c.LatencySensitivity = spec.LatencySensitivity
	}
	if spec.ManagedBy != nil {
		c.ManagedBy = spec.ManagedBy
	}
	for _, one := range spec.ExtraConfig {
		c.ExtraConfig = withOption(c.ExtraConfig, one)
	}
}

// withOption sets one of the extra settings; an empty value takes it out.
func withOption(all []types.BaseOptionValue, one types.BaseOptionValue) []types.BaseOptionValue {
	var kept []types.BaseOptionValue
	for _, other := range all {
		if other.GetOptionValue().Key != one.GetOptionValue().Key {
			kept = append(kept, other)
		}
	}
	if value := one.GetOptionValue().Value; value == nil || fmt.Sprint(value) == "" {
		return kept
	}
	return append(kept, one)
}

func wrongDevice(index int32, property string) types.BaseMethodFault {
	return &types.InvalidDeviceSpec{DeviceIndex: index,
		InvalidVmConfig: types.InvalidVmConfig{Property: fmt.Sprintf("virtualDeviceSpec.%s", property)}}
}

func (c *change) device(index int32, spec *types.VirtualDeviceConfigSpec) types.BaseMethodFault {
	if spec.Device == nil {
		return wrongDevice(index, "device")
	}
	switch spec.Operation {
	case types.VirtualDeviceConfigSpecOperationAdd:
		if disk, ok := spec.Device.(*types.VirtualDisk); ok {
			return c.addDisk(index, disk, spec.FileOperation)
		}
		return c.addOther(index, spec.Device)
	case types.VirtualDeviceConfigSpecOperationRemove:
		return c.remove(index, spec)
	case types.VirtualDeviceConfigSpecOperationEdit:
		return c.edit(index, spec.Device)
	}
	return wrongDevice(index, "operation")
}

func (c *change) append(device types.BaseVirtualDevice) {
	c.m.Config.Hardware.Device = append(c.m.Config.Hardware.Device, device)
}

// addOther adds what is no disk: controllers and cards get the key that ESXi would give.
func (c *change) addOther(index int32, device types.BaseVirtualDevice) types.BaseMethodFault {
	own := device.GetVirtualDevice()
	temporary := own.Key
	if bus := busOf(device); bus != nil {
		number := device.(types.BaseVirtualController).GetVirtualController().BusNumber
		if number < 0 || number >= bus.Busses {
			return wrongDevice(index, "device.busNumber")
		}
		key := bus.Controllers + number
		c.keys[temporary] = key
		if c.m.device(key) != nil {
			if bus.Name == "ide" {
				return nil // every machine has both
			}
			return wrongDevice(index, "device.busNumber")
		}
		own.Key = key
		if bus.Name != "ide" {
			own.ControllerKey = 100
		}
		if own.DeviceInfo == nil {
			label := fmt.Sprintf("%s controller %d", strings.ToUpper(bus.Name), number)
			own.DeviceInfo = &types.Description{Label: label, Summary: label}
		}
		c.append(device)
		return nil
	}
	if controller, ok := c.keys[own.ControllerKey]; ok {
		own.ControllerKey = controller
	}
	// Of the built-in ones there is one of each.
	switch device.(type) {
	case *types.VirtualKeyboard, *types.VirtualPointingDevice, *types.VirtualMachineVideoCard, *types.VirtualMachineVMCIDevice,
		*types.VirtualPCIController, *types.VirtualPS2Controller, *types.VirtualSIOController:
		for _, one := range c.m.Config.Hardware.Device {
			if reflect.TypeOf(one) == reflect.TypeOf(device) {
				c.keys[temporary] = one.GetVirtualDevice().Key
				return nil
			}
		}
	}
	first := int32(13000)
	switch device.(type) {
	case types.BaseVirtualEthernetCard:
		first = 4000
	case *types.VirtualCdrom:
		first = 16100
	case *types.VirtualFloppy:
		first = 8000
	case *types.VirtualTPM:
		first, c.m.Tpm = 11000, true
	}
	for own.Key = first; c.m.device(own.Key) != nil; own.Key++ {
	}
	c.keys[temporary] = own.Key
	if card, ok := device.(types.BaseVirtualEthernetCard); ok {
		nic := card.GetVirtualEthernetCard()
		if owner, held := macs.Load(nic.MacAddress); held && owner != c.m.Moref && nic.AddressType != "manual" {
			nic.MacAddress = "" // only what somebody chose may be there twice
		}
		if nic.MacAddress == "" {
			nic.MacAddress, nic.AddressType = fmt.Sprintf("00:50:56:%02x:%02x:%02x", number(c.m.Moref)>>8&0x3f,
				number(c.m.Moref)&0xff, own.Key-4000), "assigned"
		}
		macs.Store(nic.MacAddress, c.m.Moref)
		if own.DeviceInfo == nil {
			own.DeviceInfo = &types.Description{Label: fmt.Sprintf("Network adapter %d", own.Key-3999), Summary: "VM Network"}
		}
	}
	c.append(device)
	return nil
}
