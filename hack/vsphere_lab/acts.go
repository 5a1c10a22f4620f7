package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// What happens in an estate while somebody backs it up: done at once, without a task and without a login.

// Act is one of them; which of the arguments count depends on What.
type Act struct {
	Vm          string `json:"vm"`
	What        string `json:"what"`
	Name        string `json:"name"`        // rename, foreignSnapshot; vApp: its reference
	Description string `json:"description"` // foreignSnapshot
	Folder      string `json:"folder"`      // move: path under the datacenter's folder of machines
	Disk        string `json:"disk"`        // changeDiskUuid, resizeDisk, moveDisk, removeDisk: label, key or slot
	SizeBytes   int64  `json:"sizeBytes"`   // resizeDisk, addDisk
	Slot        string `json:"slot"`        // moveDisk, addDisk: "scsi0:3"
	From        string `json:"from"`        // addDisk
	Snapshot    string `json:"snapshot"`    // revert, removeSnapshot: reference or name
	State       string `json:"state"`       // power: poweredOn, poweredOff; connection: orphaned, ...
	Host        string `json:"host"`        // vmotion
	Datastore   string `json:"datastore"`   // storageVmotion, datastoreFree
	Datacenter  string `json:"datacenter"`  // datastoreFree
	FreeBytes   int64  `json:"freeBytes"`   // datastoreFree
	Of          string `json:"of"`          // duplicateUuid: the machine whose UUID it takes
	Needed      *bool  `json:"needed"`      // consolidationNeeded
	Keep        bool   `json:"keep"`        // removeDisk: the files stay
	Quiesce     string `json:"quiesce"`     // quiesce: ok, fail, noTools
	Enabled     *bool  `json:"enabled"`     // changeTracking
}

func controlAct(l *Lab, _ http.ResponseWriter, r *http.Request) (interface{}, error) {
	act := &Act{}
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(act); err != nil {
		return nil, err
	}
	switch act.What {
	case "expireSessions":
		l.tags().expire()
		return map[string]int{"ended": l.endSessions()}, nil
	case "datastoreFree":
		text(&act.Datacenter, l.config.Datacenters[0].Name)
		return map[string]bool{"done": true}, l.setFree(act.Datacenter, act.Datastore, act.FreeBytes)
	}
	m := l.named(act.Vm)
	if m == nil {
		return nil, fmt.Errorf("there is no machine %q", act.Vm)
	}
	l.note("act: %s %s", act.What, act.Vm)
	m.ops.Lock()
	defer m.ops.Unlock()
	if do := wholeActs[act.What]; do != nil {
		return do(l, m, act)
	}
	do := acts[act.What]
	if do == nil {
		return nil, fmt.Errorf("nothing is called %q", act.What)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := do(l, m, act); err != nil {
		return nil, err
	}
	return map[string]bool{"done": true}, l.save(m)
}

func done(fault types.BaseMethodFault) (interface{}, error) {
	if fault != nil {
		return nil, fmt.Errorf("%s", sayFault(fault))
	}
	return map[string]bool{"done": true}, nil
}

// wholeActs lock the machine themselves.
var wholeActs = map[string]func(*Lab, *Machine, *Act) (interface{}, error){
	"move": func(l *Lab, m *Machine, a *Act) (interface{}, error) {
		return done(l.moveTo(m, l.folderOf(m.Center, a.Folder)))
	},
	"power": func(l *Lab, m *Machine, a *Act) (interface{}, error) { return done(l.power(m, a.State)) },
	"revert": func(l *Lab, m *Machine, a *Act) (interface{}, error) {
		return done(l.revert(m, m.snapshotNamed(a.Snapshot)))
	},
	"destroy": func(l *Lab, m *Machine, _ *Act) (interface{}, error) {
		l.discard(m)
		return done(nil)
	},
	"foreignSnapshot": func(l *Lab, m *Machine, a *Act) (interface{}, error) {
		text(&a.Name, "before the update")
		result, fault := l.snapshot(m, a.Name, a.Description, false)
		if fault != nil {
			return done(fault)
		}
		return map[string]string{"snapshot": result.(types.ManagedObjectReference).Value}, nil
	},
	"vmotion": func(l *Lab, m *Machine, a *Act) (interface{}, error) {
		host := l.hostNamed(m.Center, a.Host)
		if host == nil {
			return nil, fmt.Errorf("there is no host %q in %s", a.Host, m.Center)
		}
		return done(l.relocate(m, &host.Self, nil, nil))
	},
	"storageVmotion": func(l *Lab, m *Machine, a *Act) (interface{}, error) {
		store := l.store(m.Center, a.Datastore)
		if store == nil {
			return nil, fmt.Errorf("there is no datastore %q in %s", a.Datastore, m.Center)
		}
		return done(l.relocate(m, nil, nil, &store.Ref))
	},
	"duplicateUuid": func(l *Lab, m *Machine, a *Act) (interface{}, error) {
		other := l.named(a.Of)
		if other == nil {
			return nil, fmt.Errorf("there is no machine %q", a.Of)
		}
		other.mu.RLock()
		id := other.Config.InstanceUuid
		other.mu.RUnlock()
		m.mu.Lock()
		defer m.mu.Unlock()
		return done(l.configure(m, &types.VirtualMachineConfigSpec{InstanceUuid: id}))
	},
}

func (m *Machine) snapshotNamed(name string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.findSnapshot(name)
}

// findSnapshot gives the reference of a snapshot by its reference or name; without one it is the current.
func (m *Machine) findSnapshot(name string) string {
	if name == "" {
		return m.Current
	}
	for _, one := range m.Snapshots {
		if one.Moref == name || one.Name == name {
			return one.Moref
		}
	}
	return name
}

// acts change a machine that is locked; it is saved afterwards.
var acts = map[string]func(*Lab, *Machine, *Act) error{
	"rename": func(l *Lab, m *Machine, a *Act) error {
		m.Config.Name = a.Name
		return nil
	},
	"removeSnapshot": func(l *Lab, m *Machine, a *Act) error {
		return told(l.dropSnapshots(m, []string{m.findSnapshot(a.Snapshot)}, true))
	},
	"removeAllSnapshots": func(l *Lab, m *Machine, _ *Act) error {
		var all []string
		for _, one := range m.Snapshots {
			all = append(all, one.Moref)
		}
		return told(l.dropSnapshots(m, all, true))
	},
	"resetChangeTracking": func(_ *Lab, m *Machine, _ *Act) error {
		for _, one := range m.Disks {
			one.Uuid = ""
			if m.tracking() {
				one.begin()
			}
		}
		return nil
	},
	"changeTracking": func(_ *Lab, m *Machine, a *Act) error {
		on := a.Enabled == nil || *a.Enabled
		m.Config.ChangeTrackingEnabled = &on
		for _, one := range m.Disks {
			if !on {
				one.Uuid = ""
			}
		}
		return nil
	},
	"consolidationNeeded": func(_ *Lab, m *Machine, a *Act) error {
		m.Consolidation = a.Needed == nil || *a.Needed
		return nil
	},
	"vApp": func(_ *Lab, m *Machine, a *Act) error {
		m.VApp = a.Name
		return nil
	},
	"connection": func(_ *Lab, m *Machine, a *Act) error {
		m.Connection = a.State
		return nil
	},
	"quiesce": func(_ *Lab, m *Machine, a *Act) error {
		m.Quiesce = a.Quiesce
		return nil
	},
	"changeDiskUuid": func(l *Lab, m *Machine, a *Act) error {
		disk, err := m.mustDisk(a.Disk)
		if err != nil {
			return err
		}
		layers, err := l.chain(m.Center, *backingOf(disk).FileName)
		if err != nil {
			return err
		}
		id := diskUuid("changed", fmt.Sprint(l.unique()))
		for _, y := range layers {
			y.Uuid = id
			if err := y.write(); err != nil {
				return err
			}
		}
		return nil
	},
	"resizeDisk": func(l *Lab, m *Machine, a *Act) error {
		disk, err := m.mustDisk(a.Disk)
		if err != nil {
			return err
		}
		return l.resize(m, disk, a.SizeBytes)
	},
	"moveDisk":   moveDisk,
	"addDisk":    addDisk,
	"removeDisk": removeDisk,
}

func told(fault types.BaseMethodFault) error {
	if fault == nil {
		return nil
	}
	return fmt.Errorf("%s", sayFault(fault))
}

func (m *Machine) mustDisk(name string) (*types.VirtualDisk, error) {
	disk := m.diskNamed(m.Config, name)
	if disk == nil || backingOf(disk) == nil {
		return nil, fmt.Errorf("%s has no disk %q", m.Config.Name, name)
	}
	return disk, nil
}

// moveDisk puts a disk into another slot: its key changes, its file does not.
func moveDisk(l *Lab, m *Machine, a *Act) error {
	disk, err := m.mustDisk(a.Disk)
	if err != nil {
		return err
	}
	controller, unit, err := m.controllerFor(a.Slot, "noSharing")
	if err != nil {
		return err
	}
	old, key := disk.Key, keyFor(controller, unit)
	if m.device(key) != nil {
		return fmt.Errorf("%s is taken", a.Slot)
	}
	disk.Key, disk.ControllerKey, disk.UnitNumber = key, controller.GetVirtualDevice().Key, &unit
	t := m.Disks[old]
	t.close()
	delete(m.Disks, old)
	if err := os.Rename(l.trackingPath(m, old), l.trackingPath(m, key)); err != nil {
		return err
	}
	m.Disks[key] = t
	return t.open(l.trackingPath(m, key))
}

func addDisk(l *Lab, m *Machine, a *Act) error {
	config := DiskConfig{Controller: a.Slot, SizeBytes: a.SizeBytes, From: a.From,
		Label: fmt.Sprintf("Hard disk %d", m.nextLabel())}
	if a.Slot == "" {
		for unit := 0; unit < 16 && config.Controller == ""; unit++ {
			if slot := fmt.Sprintf("scsi0:%d", unit); unit != 7 && m.diskNamed(m.Config, slot) == nil {
				config.Controller = slot
			}
		}
	}
	store, _, err := splitPath(m.Config.Files.VmPathName)
	if err != nil {
		return err
	}
	config.Datastore, config.Kind, config.Mode, config.Sharing = store, "flat", "persistent", "sharingNone"
	config.BusSharing = "noSharing"
	flag(&config.Thin, true)
	return l.addConfigured(m, config)
}

func removeDisk(l *Lab, m *Machine, a *Act) error {
	disk, err := m.mustDisk(a.Disk)
	if err != nil {
		return err
	}
	spec := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: disk}
	if !a.Keep {
		spec.FileOperation = types.VirtualDeviceConfigSpecFileOperationDestroy
	}
	return told(l.configure(m, &types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{spec}}))
}

// setFree changes what is left on a datastore; it outlives a crash.
func (l *Lab) setFree(center, name string, free int64) error {
	store := l.store(center, name)
	if store == nil {
		return fmt.Errorf("there is no datastore %q in %s", name, center)
	}
	object := simulator.Map.Get(store.Ref).(*simulator.Datastore)
	simulator.Map.WithLock(object, func() {
		simulator.Map.Update(object, []types.PropertyChange{{Name: "summary.freeSpace", Val: free}})
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.facts.Free[center+"/"+name] = free
	return l.saveFacts()
}
