package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// The control interface, for tests alone: what a guest writes, what a disk holds, and how the peer misbehaves.

func init() {
	for path, serve := range map[string]func(*Lab, http.ResponseWriter, *http.Request) (interface{}, error){
		"/lab/state": controlState, "/lab/write": controlWrite, "/lab/read": controlRead, "/lab/faults": controlFaults,
		"/lab/modes": controlModes, "/lab/act": controlAct, "/lab/crash": controlCrash,
	} {
		serve := serve
		paths[path] = func(l *Lab, w http.ResponseWriter, r *http.Request) {
			if !l.basic(r) {
				http.Error(w, "the lab's own user and password", http.StatusUnauthorized)
				return
			}
			value, err := serve(l, w, r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			if value != nil {
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(value)
			}
		}
	}
}

// stateParts are what other files add to /lab/state.
var stateParts = map[string]func(*Lab) interface{}{}

// DiskState is one disk of /lab/state; Chain holds local files, the live one first, the base last.
type DiskState struct {
	Label     string   `json:"label"`
	Key       int32    `json:"key"`
	Slot      string   `json:"slot"`
	File      string   `json:"file"`
	Flat      string   `json:"flat"`
	Chain     []string `json:"chain"`
	Kinds     []string `json:"kinds"`
	SizeBytes int64    `json:"sizeBytes"`
	ChangeId  string   `json:"changeId"`
	Uuid      string   `json:"uuid"`
	Frozen    bool     `json:"snapshotted"`
}

// SnapshotState is one snapshot of /lab/state.
type SnapshotState struct {
	Moref       string      `json:"moref"`
	Parent      string      `json:"parent"`
	Name        string      `json:"name"`
	Description string      `json:"description"`
	Quiesced    bool        `json:"quiesced"`
	Disks       []DiskState `json:"disks"`
}

// MachineState is one machine of /lab/state.
type MachineState struct {
	Name                string            `json:"name"`
	Moref               string            `json:"moref"`
	InstanceUuid        string            `json:"instanceUuid"`
	BiosUuid            string            `json:"biosUuid"`
	PowerState          string            `json:"powerState"`
	Datacenter          string            `json:"datacenter"`
	Folder              string            `json:"folder"`
	Host                string            `json:"host"`
	Vmx                 string            `json:"vmx"`
	Template            bool              `json:"template"`
	Firmware            string            `json:"firmware"`
	ChangeTracking      bool              `json:"changeTracking"`
	ConsolidationNeeded bool              `json:"consolidationNeeded"`
	Snapshots           []SnapshotState   `json:"snapshots"`
	Disks               []DiskState       `json:"disks"`
	Attributes          map[string]string `json:"attributes"`
	Tags                []string          `json:"tags"`
}

func (l *Lab) diskStates(m *Machine, config *types.VirtualMachineConfigInfo) []DiskState {
	found := []DiskState{}
	for _, disk := range disksOf(config) {
		b := backingOf(disk)
		if b == nil {
			continue
		}
		one := DiskState{Key: disk.Key, Slot: slotOf(config, disk), File: *b.FileName, SizeBytes: disk.CapacityInBytes,
			ChangeId: *b.ChangeId, Uuid: *b.Uuid, Frozen: snapshotted(disk), Chain: []string{}, Kinds: []string{}}
		if disk.DeviceInfo != nil {
			one.Label = disk.DeviceInfo.GetDescription().Label
		}
		layers, err := l.chain(m.Center, *b.FileName)
		if err == nil {
			for _, y := range layers {
				one.Chain, one.Kinds = append(one.Chain, y.data()), append(one.Kinds, y.Kind)
				one.Flat = y.data()
			}
		}
		found = append(found, one)
	}
	return found
}

func (l *Lab) machineState(m *Machine) MachineState {
	m.mu.RLock()
	defer m.mu.RUnlock()
	c := m.Config
	one := MachineState{Name: c.Name, Moref: m.Moref, InstanceUuid: c.InstanceUuid, BiosUuid: c.Uuid, PowerState: m.Power,
		Datacenter: m.Center, Folder: m.Folder, Host: m.Host, Vmx: c.Files.VmPathName, Template: c.Template,
		Firmware: c.Firmware, ChangeTracking: m.tracking(), ConsolidationNeeded: m.Consolidation,
		Snapshots: []SnapshotState{}, Disks: l.diskStates(m, c), Attributes: m.Attributes, Tags: m.Tags}
	if host, ok := simulator.Map.Get(types.ManagedObjectReference{Type: "HostSystem", Value: m.Host}).(*simulator.HostSystem); ok {
		one.Host = host.Name
	}
	for _, snapshot := range m.Snapshots {
		one.Snapshots = append(one.Snapshots, SnapshotState{Moref: snapshot.Moref, Parent: snapshot.Parent,
			Name: snapshot.Name, Description: snapshot.Description, Quiesced: snapshot.Quiesced,
			Disks: l.diskStates(m, snapshot.Config)})
	}
	return one
}

func controlState(l *Lab, _ http.ResponseWriter, _ *http.Request) (interface{}, error) {
	machines := []MachineState{}
	for _, m := range l.all() {
		machines = append(machines, l.machineState(m))
	}
	state := map[string]interface{}{"machines": machines, "leases": []int{}}
	for name, part := range stateParts {
		state[name] = part(l)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	calls := map[string]int{}
	for name, n := range l.counts {
		calls[name] = n
	}
	state["sessions"] = len(l.sessions)
	state["calls"] = calls
	state["log"] = append([]string{}, l.events...)
	state["faults"] = append([]*Fault{}, l.faults...)
	state["modes"] = l.modes
	state["boots"] = l.facts.Boots
	state["free"] = l.facts.Free
	return state, nil
}

// place names what a read or write is about: vm, disk (label, key or slot), offset.
func controlPlace(l *Lab, query url.Values) (*Machine, int64, error) {
	m := l.named(query.Get("vm"))
	if m == nil {
		return nil, 0, fmt.Errorf("there is no machine %q", query.Get("vm"))
	}
	offset, err := strconv.ParseInt(query.Get("offset"), 10, 64)
	if query.Get("offset") == "" {
		offset, err = 0, nil
	}
	return m, offset, err
}

func controlWrite(l *Lab, _ http.ResponseWriter, r *http.Request) (interface{}, error) {
	m, offset, err := controlPlace(l, r.URL.Query())
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	return map[string]int{"written": len(data)}, l.guestWrites(m, r.URL.Query().Get("disk"), offset, data)
}

// guestWrites is what a guest does to its disk: into the live layer, and noted by change tracking.
func (l *Lab) guestWrites(m *Machine, name string, offset int64, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	disk := m.diskNamed(m.Config, name)
	if disk == nil || backingOf(disk) == nil {
		return fmt.Errorf("%s has no disk %q", m.Config.Name, name)
	}
	return l.writeLive(m, disk, offset, data)
}

// writeLive writes into the live layer of a disk; the caller holds m.mu.
func (l *Lab) writeLive(m *Machine, disk *types.VirtualDisk, offset int64, data []byte) error {
	layers, err := l.chain(m.Center, *backingOf(disk).FileName)
	if err != nil {
		return err
	}
	writer, err := openWriter(layers)
	if err != nil {
		return err
	}
	defer writer.Close()
	// Stamped first: a crash between the two must not hide a change.
	if t := m.Disks[disk.Key]; t != nil {
		t.wrote(offset, int64(len(data)))
	}
	return writer.WriteAt(data, offset)
}

func controlRead(l *Lab, w http.ResponseWriter, r *http.Request) (interface{}, error) {
	query := r.URL.Query()
	m, offset, err := controlPlace(l, query)
	if err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	config := m.Config
	if name := query.Get("snapshot"); name != "" {
		var found *Snapshot
		for _, one := range m.Snapshots {
			if one.Moref == name || one.Name == name {
				found = one
			}
		}
		if found == nil {
			return nil, fmt.Errorf("%s has no snapshot %q", m.Config.Name, name)
		}
		config = found.Config
	}
	disk := m.diskNamed(config, query.Get("disk"))
	if disk == nil || backingOf(disk) == nil {
		return nil, fmt.Errorf("%s has no disk %q", m.Config.Name, query.Get("disk"))
	}
	layers, err := l.chain(m.Center, *backingOf(disk).FileName)
	if err != nil {
		return nil, err
	}
	reader, err := openReader(layers)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	length := reader.Capacity - offset
	if asked := query.Get("length"); asked != "" {
		if length, err = strconv.ParseInt(asked, 10, 64); err != nil {
			return nil, err
		}
	}
	if offset < 0 || length < 0 || offset+length > reader.Capacity {
		return nil, fmt.Errorf("%d bytes at %d are not within the %d of the disk", length, offset, reader.Capacity)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", fmt.Sprint(length))
	_, err = io.Copy(w, io.NewSectionReader(reader, offset, length))
	return nil, err
}

func controlFaults(l *Lab, _ http.ResponseWriter, r *http.Request) (interface{}, error) {
	if r.Method == http.MethodDelete {
		l.mu.Lock()
		l.faults = nil
		l.mu.Unlock()
		return map[string]bool{"cleared": true}, nil
	}
	one := &Fault{}
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(one); err != nil {
		return nil, err
	}
	id, err := l.addFault(one)
	return map[string]int{"id": id}, err
}

func controlModes(l *Lab, _ http.ResponseWriter, r *http.Request) (interface{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	modes := l.modes
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&modes); err != nil {
		return nil, err
	}
	l.modes = modes
	return modes, nil
}

func controlCrash(l *Lab, _ http.ResponseWriter, _ *http.Request) (interface{}, error) {
	crash()
	return nil, nil
}
