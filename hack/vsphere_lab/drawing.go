package main

import (
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Drawing turns a machine's record into the properties of the simulator's object. Values are replaced whole, never
// changed in place: an answer being encoded keeps what it collected.

func (l *Lab) draw(m *Machine) {
	vm, ok := simulator.Map.Get(m.ref()).(*simulator.VirtualMachine)
	if !ok {
		return
	}
	config := &types.VirtualMachineConfigInfo{}
	copyOf(m.Config, config)
	guest, runtime := m.guest(), m.runtime()
	stores := l.storesOf(m)
	changes := []types.PropertyChange{
		{Name: "name", Val: config.Name},
		{Name: "config", Val: config},
		{Name: "runtime", Val: runtime},
		{Name: "guest", Val: guest},
		{Name: "capability", Val: m.capability()},
		{Name: "layoutEx", Val: l.layout(m)},
		{Name: "summary", Val: m.summary(config, runtime, guest)},
		{Name: "datastore", Val: stores},
		{Name: "snapshot", Val: nil},
		{Name: "rootSnapshot", Val: []types.ManagedObjectReference{}},
		{Name: "resourcePool", Val: nil},
	}
	if tree := m.tree(""); len(tree) > 0 {
		info := &types.VirtualMachineSnapshotInfo{RootSnapshotList: tree}
		if one := m.snapshot(m.Current); one != nil {
			ref := one.ref()
			info.CurrentSnapshot = &ref
		}
		changes[8].Val = info
		var roots []types.ManagedObjectReference
		for _, one := range tree {
			roots = append(roots, one.Snapshot)
		}
		changes[9].Val = roots
	}
	if m.Pool != "" {
		changes[10].Val = types.ManagedObjectReference{Type: "ResourcePool", Value: m.Pool}
	}
	l.drawSnapshots(m)
	fields, values := l.attributes(m)
	simulator.Map.WithLock(vm, func() {
		simulator.Map.Update(vm, changes)
		vm.AvailableField, vm.Value, vm.CustomValue = fields, values, values
		if m.VApp != "" {
			// A machine of a vApp has no folder of its own.
			vm.Parent, vm.ParentVApp = nil, &types.ManagedObjectReference{Type: "VirtualApp", Value: m.VApp}
		}
	})
	for _, one := range l.datastores {
		store := simulator.Map.Get(one.Ref).(*simulator.Datastore)
		simulator.Map.RemoveReference(store, &store.Vm, vm.Self)
		for _, ref := range stores {
			if ref == one.Ref {
				simulator.Map.AddReference(store, &store.Vm, vm.Self)
			}
		}
	}
}

func (m *Machine) guest() *types.GuestInfo {
	guest := &types.GuestInfo{GuestState: "notRunning", ToolsStatus: "toolsNotRunning", GuestId: m.Config.GuestId,
		ToolsRunningStatus: "guestToolsNotRunning", ToolsVersionStatus: "guestToolsCurrent",
		ToolsVersionStatus2: "guestToolsCurrent", GuestFullName: m.Config.GuestFullName}
	if m.Quiesce == "noTools" {
		guest.ToolsStatus, guest.ToolsVersionStatus = "toolsNotInstalled", "guestToolsNotInstalled"
		guest.ToolsVersionStatus2 = "guestToolsNotInstalled"
	}
	if m.Power == "poweredOn" {
		guest.GuestState = "running"
		if m.Quiesce != "noTools" {
			guest.ToolsStatus, guest.ToolsRunningStatus = "toolsOk", "guestToolsRunning"
			guest.HostName = strings.ToLower(m.Config.Name)
		}
	}
	return guest
}

func (m *Machine) runtime() types.VirtualMachineRuntimeInfo {
	host := types.ManagedObjectReference{Type: "HostSystem", Value: m.Host}
	runtime := types.VirtualMachineRuntimeInfo{Host: &host, ConnectionState: "connected",
		PowerState: types.VirtualMachinePowerState(m.Power), FaultToleranceState: "notConfigured",
		ConsolidationNeeded: types.NewBool(m.Consolidation)}
	if m.Connection != "" {
		runtime.ConnectionState = types.VirtualMachineConnectionState(m.Connection)
	}
	if m.Fault {
		runtime.FaultToleranceState = "running"
	}
	return runtime
}

func (m *Machine) capability() types.VirtualMachineCapability {
	return types.VirtualMachineCapability{
		SnapshotOperationsSupported: true, MultipleSnapshotsSupported: true, SnapshotConfigSupported: true,
		PoweredOffSnapshotsSupported: true, MemorySnapshotsSupported: true, RevertToSnapshotSupported: true,
		QuiescedSnapshotsSupported: true, ConsolePreferencesSupported: true, DiskSharesSupported: true,
		BootOptionsSupported: true, ChangeTrackingSupported: types.NewBool(m.Supported),
	}
}

func (m *Machine) summary(config *types.VirtualMachineConfigInfo, runtime types.VirtualMachineRuntimeInfo,
	guest *types.GuestInfo) types.VirtualMachineSummary {
	self := m.ref()
	var committed int64
	for _, disk := range disksOf(config) {
		committed += disk.CapacityInBytes
	}
	return types.VirtualMachineSummary{
		Vm: &self, Runtime: runtime, OverallStatus: "green",
		QuickStats: types.VirtualMachineQuickStats{GuestHeartbeatStatus: "gray"},
		Guest: &types.VirtualMachineGuestSummary{GuestId: guest.GuestId, GuestFullName: guest.GuestFullName,
			ToolsStatus: guest.ToolsStatus, ToolsRunningStatus: guest.ToolsRunningStatus,
			ToolsVersionStatus: guest.ToolsVersionStatus, HostName: guest.HostName},
		Config: types.VirtualMachineConfigSummary{Name: config.Name, Template: config.Template,
			VmPathName: config.Files.VmPathName, MemorySizeMB: config.Hardware.MemoryMB, NumCpu: config.Hardware.NumCPU,
			NumVirtualDisks: int32(len(disksOf(config))), Uuid: config.Uuid, InstanceUuid: config.InstanceUuid,
			GuestId: config.GuestId, GuestFullName: config.GuestFullName, Annotation: config.Annotation,
			TpmPresent: types.NewBool(m.Tpm)},
		Storage: &types.VirtualMachineStorageSummary{Committed: committed, Unshared: committed, Timestamp: time.Now()},
	}
}

// tree lists the snapshots below one, "" for the first.
func (m *Machine) tree(parent string) []types.VirtualMachineSnapshotTree {
	var found []types.VirtualMachineSnapshotTree
	for _, one := range m.Snapshots {
		if one.Parent != parent {
			continue
		}
		found = append(found, types.VirtualMachineSnapshotTree{
			Snapshot: one.ref(), Vm: m.ref(), Name: one.Name, Description: one.Description, Id: one.Id,
			CreateTime: one.Created, State: types.VirtualMachinePowerState(one.Power), Quiesced: one.Quiesced,
			ReplaySupported: types.NewBool(false), ChildSnapshotList: m.tree(one.Moref)})
	}
	return found
}

func (l *Lab) drawSnapshots(m *Machine) {
	for _, one := range m.Snapshots {
		config := types.VirtualMachineConfigInfo{}
		copyOf(one.Config, &config)
		snapshot := &simulator.VirtualMachineSnapshot{}
		snapshot.Self, snapshot.Vm, snapshot.Config = one.ref(), m.ref(), config
		for _, other := range m.Snapshots {
			if other.Parent == one.Moref {
				snapshot.ChildSnapshot = append(snapshot.ChildSnapshot, other.ref())
			}
		}
		simulator.Map.Put(snapshot)
	}
}

// storesOf lists the datastores that a machine has files on.
func (l *Lab) storesOf(m *Machine) []types.ManagedObjectReference {
	names := map[string]bool{}
	add := func(text string) {
		if name, _, err := splitPath(text); err == nil {
			names[name] = true
		}
	}
	add(m.Config.Files.VmPathName)
	for _, disk := range disksOf(m.Config) {
		if b := backingOf(disk); b != nil {
			add(*b.FileName)
		}
	}
	found := []types.ManagedObjectReference{}
	for _, one := range l.datastores {
		if one.Datacenter == m.Center && names[one.Name] {
			found = append(found, one.Ref)
		}
	}
	return found
}

// layout lists the machine's files as they lie on the datastores.
func (l *Lab) layout(m *Machine) *types.VirtualMachineFileLayoutEx {
	out := &types.VirtualMachineFileLayoutEx{Timestamp: time.Now()}
	keys := map[string]int32{}
	add := func(name, kind string) int32 {
		if key, ok := keys[name]; ok {
			return key
		}
		size := int64(0)
		if file, _, err := l.local(m.Center, name); err == nil {
			if info, err := os.Stat(file); err == nil {
				size = info.Size()
			}
		}
		keys[name] = int32(len(out.File))
		out.File = append(out.File, types.VirtualMachineFileLayoutExFileInfo{Key: keys[name], Name: name, Type: kind,
			Size: size, UniqueSize: size, Accessible: types.NewBool(true)})
		return keys[name]
	}
	add(m.Config.Files.VmPathName, "config")
	if file, _, err := l.local(m.Center, l.nvramPath(m)); err == nil {
		if _, err := os.Stat(file); err == nil {
			add(l.nvramPath(m), "nvram")
		}
	}
	for _, disk := range disksOf(m.Config) {
		b := backingOf(disk)
		if b == nil {
			continue
		}
		layers, err := l.chain(m.Center, *b.FileName)
		if err != nil {
			continue
		}
		one := types.VirtualMachineFileLayoutExDiskLayout{Key: disk.Key}
		for i := len(layers) - 1; i >= 0; i-- {
			y := layers[i]
			unit := types.VirtualMachineFileLayoutExDiskUnit{FileKey: []int32{add(y.Path, "diskDescriptor")}}
			if !strings.Contains(y.ExtentName, "://") {
				store, file, _ := splitPath(y.Path)
				unit.FileKey = append(unit.FileKey, add(joinPath(store, path.Join(path.Dir(file), y.ExtentName)), "diskExtent"))
			}
			one.Chain = append(one.Chain, unit)
		}
		out.Disk = append(out.Disk, one)
	}
	return out
}

// attributes are the custom fields of a machine, whose definitions are made where they are missing.
func (l *Lab) attributes(m *Machine) ([]types.CustomFieldDef, []types.BaseCustomFieldValue) {
	manager := simulator.Map.CustomFieldsManager()
	names := make([]string, 0, len(m.Attributes))
	for name := range m.Attributes {
		names = append(names, name)
	}
	sort.Strings(names)
	var values []types.BaseCustomFieldValue
	var fields []types.CustomFieldDef
	simulator.Map.WithLock(manager, func() {
		for _, name := range names {
			key := int32(-1)
			for _, one := range manager.Field {
				if one.Name == name {
					key = one.Key
				}
			}
			if key < 0 {
				key = int32(len(manager.Field)) + 101
				all := append([]types.CustomFieldDef{}, manager.Field...)
				manager.Field = append(all, types.CustomFieldDef{Key: key, Name: name, Type: "string",
					ManagedObjectType: "VirtualMachine"})
			}
			values = append(values, &types.CustomFieldStringValue{
				CustomFieldValue: types.CustomFieldValue{Key: key}, Value: m.Attributes[name]})
		}
		fields = append(fields, manager.Field...)
	})
	return fields, values
}

// writeVmx writes the machine's configuration file beside its disks.
func (l *Lab) writeVmx(m *Machine) {
	file, _, err := l.local(m.Center, m.Config.Files.VmPathName)
	if err == nil {
		if err = os.MkdirAll(filepath.Dir(file), 0o755); err == nil {
			err = writeFile(file, []byte(l.vmx(m)))
		}
	}
	if err != nil {
		l.note("%s: its vmx file cannot be written: %s", m.Config.Name, err)
	}
}
