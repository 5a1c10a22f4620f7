package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Machine is one virtual machine: its record on disk is the truth, the simulator's object is drawn from it.
type Machine struct {
	ops  sync.Mutex   // one task at a time, as on a host
	mu   sync.RWMutex // guards all that follows and the disks' content
	gone bool

	Moref         string                          `json:"moref"`
	Center        string                          `json:"center"`
	Folder        string                          `json:"folder"` // path under the datacenter's folder of machines
	Host          string                          `json:"host"`   // reference
	Pool          string                          `json:"pool"`   // reference, "" for a template
	Power         string                          `json:"power"`
	VApp          string                          `json:"vApp"`       // reference, "" for none
	Connection    string                          `json:"connection"` // "" is connected
	Supported     bool                            `json:"supported"`  // change tracking
	Quiesce       string                          `json:"quiesce"`
	Fault         bool                            `json:"faultTolerance"`
	Tpm           bool                            `json:"tpm"`
	Consolidation bool                            `json:"consolidation"`
	Snapshots     []*Snapshot                     `json:"snapshots"`
	Current       string                          `json:"current"`
	NextSnapshot  int32                           `json:"nextSnapshot"`
	Disks         map[int32]*Tracking             `json:"disks"`
	Attributes    map[string]string               `json:"attributes"`
	Tags          []string                        `json:"tags"` // "category/tag"
	ConfigXML     string                          `json:"config"`
	Config        *types.VirtualMachineConfigInfo `json:"-"`
}

// Snapshot is a frozen state of a machine.
type Snapshot struct {
	Moref       string                          `json:"moref"`
	Parent      string                          `json:"parent"`
	Name        string                          `json:"name"`
	Description string                          `json:"description"`
	Id          int32                           `json:"id"`
	Created     time.Time                       `json:"created"`
	Power       string                          `json:"power"`
	Quiesced    bool                            `json:"quiesced"`
	ConfigXML   string                          `json:"config"`
	Config      *types.VirtualMachineConfigInfo `json:"-"`
}

func (m *Machine) ref() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "VirtualMachine", Value: m.Moref}
}

func (s *Snapshot) ref() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: s.Moref}
}

func (m *Machine) name() string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.Config.Name
}

func (m *Machine) snapshot(moref string) *Snapshot {
	for _, one := range m.Snapshots {
		if one.Moref == moref {
			return one
		}
	}
	return nil
}

func (m *Machine) tracking() bool {
	return m.Config.ChangeTrackingEnabled != nil && *m.Config.ChangeTrackingEnabled
}

var uniques int64

func (l *Lab) unique() int64 { return int64(l.facts.Boots)<<32 + atomic.AddInt64(&uniques, 1) }

func (l *Lab) recordPath(m *Machine) string {
	return filepath.Join(l.folder, "state", "machines", m.Moref+".json")
}

// save normalises the record, writes it to disk and draws the simulator's object anew; the caller holds m.mu.
func (l *Lab) save(m *Machine) error {
	l.normalise(m)
	m.ConfigXML = toXML(m.Config)
	for _, one := range m.Snapshots {
		if one.ConfigXML == "" {
			one.ConfigXML = toXML(one.Config)
		}
	}
	if err := writeJSON(l.recordPath(m), m); err != nil {
		return err
	}
	l.writeVmx(m)
	l.hold(m)
	l.draw(m)
	return nil
}

func (l *Lab) loadMachines() error {
	files, err := filepath.Glob(filepath.Join(l.folder, "state", "machines", "*.json"))
	if err != nil {
		return err
	}
	var found []*Machine
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		m := &Machine{}
		if err := json.Unmarshal(text, m); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		m.Config = &types.VirtualMachineConfigInfo{}
		if err := fromXML(m.ConfigXML, m.Config); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, one := range m.Snapshots {
			one.Config = &types.VirtualMachineConfigInfo{}
			if err := fromXML(one.ConfigXML, one.Config); err != nil {
				return fmt.Errorf("%s: %s: %w", file, one.Moref, err)
			}
		}
		found = append(found, m)
	}
	sort.Slice(found, func(i, j int) bool { return number(found[i].Moref) < number(found[j].Moref) })
	for _, m := range found {
		for key, one := range m.Disks {
			if err := one.open(l.trackingPath(m, key)); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
		if err := l.retrack(m); err != nil {
			l.note("%s: %s", m.Config.Name, err) // a machine whose disks are gone is still a machine
		}
		l.place(m)
		if err := l.save(m); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) makeMachines() error {
	for _, one := range l.config.Machines {
		if err := l.makeMachine(one); err != nil {
			return fmt.Errorf("machine %s: %w", one.Name, err)
		}
	}
	return nil
}

// newMachine is a record with the parts that every machine has; it lies nowhere yet.
func (l *Lab) newMachine(center, folder, name string) *Machine {
	now := time.Now().UTC()
	allocation := types.DefaultResourceConfigSpec()
	m := &Machine{
		Moref: l.reference("VirtualMachine", "vm").Value, Center: center, Folder: folder, Power: "poweredOff",
		Supported: true, Quiesce: "ok", NextSnapshot: 1, Disks: map[int32]*Tracking{}, Attributes: map[string]string{},
	}
	m.Config = &types.VirtualMachineConfigInfo{
		Name: name, ChangeVersion: now.Format(time.RFC3339Nano), Modified: now, CreateDate: &now,
		Version: "vmx-14", GuestId: "otherGuest64", GuestFullName: "Other (64-bit)", Firmware: "bios",
		Uuid: uuidFor("bios", name, fmt.Sprint(l.unique())), InstanceUuid: uuidFor("instance", name, fmt.Sprint(l.unique())),
		Tools: &types.ToolsConfigInfo{ToolsVersion: 11333}, ChangeTrackingEnabled: types.NewBool(false),
		CpuAllocation: &allocation.CpuAllocation, MemoryAllocation: &allocation.MemoryAllocation,
		LatencySensitivity: &types.LatencySensitivity{Level: "normal"}, BootOptions: &types.VirtualMachineBootOptions{},
		Hardware: types.VirtualHardware{NumCPU: 1, NumCoresPerSocket: 1, MemoryMB: 1024, Device: defaultDevices()},
	}
	return m
}

// settle gives a machine's files their folder on a datastore; path is of its vmx file.
func (m *Machine) settle(vmx string) {
	store, file, _ := splitPath(vmx)
	folder := joinPath(store, path.Dir(file))
	m.Config.Files = types.VirtualMachineFileInfo{
		VmPathName: vmx, SnapshotDirectory: folder, SuspendDirectory: folder, LogDirectory: folder}
}

func (l *Lab) makeMachine(config MachineConfig) error {
	center := l.datacenter(config.Datacenter)
	if center == nil {
		return fmt.Errorf("there is no datacenter %q", config.Datacenter)
	}
	host := l.hostNamed(config.Datacenter, config.Host)
	if host == nil {
		return fmt.Errorf("there is no host %q in %s", config.Host, config.Datacenter)
	}
	l.folderOf(config.Datacenter, config.Folder)
	m := l.newMachine(config.Datacenter, config.Folder, config.Name)
	m.Host, m.Power, m.Quiesce = host.Self.Value, config.PowerState, config.Quiesce
	m.Pool = computeOf(host).ResourcePool.Value
	if config.Pool != "" {
		m.Pool = makePool(*computeOf(host).ResourcePool, config.Pool).Value
	}
	m.Supported, m.Fault, m.Tpm = *config.ChangeTrackingSupported, config.FaultTolerance, config.Vtpm
	m.Tags, m.Attributes = config.Tags, map[string]string{}
	for key, value := range config.Attributes {
		m.Attributes[key] = value
	}
	c := m.Config
	c.Uuid, c.InstanceUuid, c.Firmware = config.BiosUuid, config.InstanceUuid, config.Firmware
	c.GuestId, c.GuestFullName, c.Annotation, c.Template = config.GuestId, config.GuestId, config.Annotation, config.Template
	c.Hardware.MemoryMB, c.Hardware.NumCPU = int32(config.MemoryMB), config.Cpus
	c.ChangeTrackingEnabled = types.NewBool(config.ChangeTracking)
	m.settle(joinPath(config.Datastore, config.Name+"/"+config.Name+".vmx"))
	if config.Template {
		m.Pool = ""
	}
	if config.Encrypted || config.Vtpm {
		c.KeyId = &types.CryptoKeyId{KeyId: "key-" + config.Name, ProviderId: &types.KeyProviderId{Id: "kms"}}
	}
	if config.FaultTolerance {
		c.FtInfo = &types.FaultTolerancePrimaryConfigInfo{FaultToleranceConfigInfo: types.FaultToleranceConfigInfo{
			Role: 1, InstanceUuids: []string{c.InstanceUuid}, ConfigPaths: []string{c.Files.VmPathName}}}
	}
	if config.Vtpm {
		c.Hardware.Device = append(c.Hardware.Device, &types.VirtualTPM{VirtualDevice: types.VirtualDevice{
			Key: 11000, DeviceInfo: &types.Description{Label: "Virtual TPM", Summary: "Trusted Platform Module"}}})
	}
	for _, one := range config.Disks {
		if err := l.addConfigured(m, one); err != nil {
			return fmt.Errorf("disk %s: %w", one.Label, err)
		}
	}
	if config.Encrypted {
		for _, disk := range disksOf(c) {
			if flat, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
				flat.KeyId = c.KeyId
			}
		}
	}
	if *config.Nvram {
		file, _, err := l.local(m.Center, l.nvramPath(m))
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		body := strings.Repeat("NVRAM of "+config.Name+" ", 400)
		if err := os.WriteFile(file, []byte(body), 0o644); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	l.place(m)
	return l.save(m)
}

func (l *Lab) nvramPath(m *Machine) string {
	return strings.TrimSuffix(m.Config.Files.VmPathName, ".vmx") + ".nvram"
}

// place enters a machine in the inventory; all references to it are made here and removed by displace.
func (l *Lab) place(m *Machine) {
	vm := &simulator.VirtualMachine{}
	vm.Self = m.ref()
	vm.Config = m.Config
	vm.Name = m.Config.Name
	vm.Guest = &types.GuestInfo{}
	folder := simulator.Map.Get(l.folderOf(m.Center, m.Folder)).(*simulator.Folder)
	l.mu.Lock()
	l.machines[m.Moref] = m
	l.mu.Unlock()
	host := simulator.Map.Get(types.ManagedObjectReference{Type: "HostSystem", Value: m.Host}).(*simulator.HostSystem)
	compute := computeOf(host)
	vm.EnvironmentBrowser = *compute.EnvironmentBrowser
	simulator.Map.AddReference(folder, &folder.ChildEntity, vm.Self)
	vm.Parent = &types.ManagedObjectReference{Type: "Folder", Value: folder.Self.Value}
	simulator.Map.AddReference(host, &host.Vm, vm.Self)
	if pool := poolOf(m); pool != nil {
		simulator.Map.AddReference(pool, &pool.Vm, vm.Self)
	}
	simulator.Map.Put(vm)
}

func poolOf(m *Machine) *simulator.ResourcePool {
	ref := types.ManagedObjectReference{Type: "ResourcePool", Value: m.Pool}
	pool, _ := simulator.Map.Get(ref).(*simulator.ResourcePool)
	return pool
}

// displace takes a machine out of the inventory, with its snapshots.
func (l *Lab) displace(m *Machine) {
	ref := m.ref()
	for _, one := range simulator.Map.All("Folder") {
		if folder, ok := one.(*simulator.Folder); ok {
			simulator.Map.RemoveReference(folder, &folder.ChildEntity, ref)
		}
	}
	for _, one := range simulator.Map.All("HostSystem") {
		host := one.(*simulator.HostSystem)
		simulator.Map.RemoveReference(host, &host.Vm, ref)
	}
	for _, one := range simulator.Map.All("ResourcePool") {
		pool := one.(*simulator.ResourcePool)
		simulator.Map.RemoveReference(pool, &pool.Vm, ref)
	}
	for _, one := range l.datastores {
		store := simulator.Map.Get(one.Ref).(*simulator.Datastore)
		simulator.Map.RemoveReference(store, &store.Vm, ref)
	}
	for _, one := range m.Snapshots {
		simulator.Map.Remove(one.ref())
	}
	simulator.Map.Remove(ref)
	l.mu.Lock()
	delete(l.machines, m.Moref)
	l.mu.Unlock()
}

// forget removes the record of a machine that left the inventory; its disks' files are left or gone already.
func (l *Lab) forget(m *Machine) error {
	m.gone = true
	l.displace(m)
	l.hold(m)
	for _, one := range m.Disks {
		one.close()
	}
	if err := os.RemoveAll(filepath.Join(l.folder, "state", "tracking", m.Moref)); err != nil {
		return err
	}
	return os.Remove(l.recordPath(m))
}
