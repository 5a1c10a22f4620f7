package main

import (
	"fmt"
	"os"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func init() {
	methods["CreateSnapshot_Task"] = createSnapshot
	methods["CreateSnapshotEx_Task"] = createSnapshotEx
	methods["RemoveSnapshot_Task"] = removeSnapshot
	methods["RemoveAllSnapshots_Task"] = removeAllSnapshots
	methods["RevertToSnapshot_Task"] = revertToSnapshot
	methods["RevertToCurrentSnapshot_Task"] = revertToCurrent
	methods["ConsolidateVMDisks_Task"] = consolidate
	methods["RenameSnapshot"] = renameSnapshot
}

func createSnapshot(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.CreateSnapshot_Task)
	task, fault := c.snapshotTask(req.This, req.Name, req.Description, req.Quiesce)
	return &types.CreateSnapshot_TaskResponse{Returnval: task}, fault
}

func createSnapshotEx(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.CreateSnapshotEx_Task)
	task, fault := c.snapshotTask(req.This, req.Name, req.Description, req.QuiesceSpec != nil)
	return &types.CreateSnapshotEx_TaskResponse{Returnval: task}, fault
}

func (c *call) snapshotTask(this types.ManagedObjectReference, name, description string, quiesce bool) (types.ManagedObjectReference, *soap.Fault) {
	m := c.lab.machine(this)
	if m == nil {
		return this, notFound(this)
	}
	return c.start("CreateSnapshot_Task", this, m, func() (types.AnyType, types.BaseMethodFault) {
		return c.lab.snapshot(m, name, description, quiesce)
	}), nil
}

// snapshot freezes a machine's disks: each gets a delta for the writes to come.
func (l *Lab) snapshot(m *Machine, name, description string, quiesce bool) (types.AnyType, types.BaseMethodFault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return nil, &types.ManagedObjectNotFound{Obj: m.ref()}
	}
	for _, one := range m.Config.Hardware.Device {
		// A host refuses it, as the other machines on the bus would not follow.
		if scsi, ok := one.(types.BaseVirtualSCSIController); ok {
			shared := scsi.GetVirtualSCSIController().SharedBus
			if shared != "" && shared != "noSharing" && len(scsi.GetVirtualSCSIController().Device) > 0 {
				return nil, &types.GenericVmConfigFault{Reason: "Cannot take a snapshot of a virtual machine with a shared SCSI bus."}
			}
		}
	}
	for _, disk := range disksOf(m.Config) {
		if b := backingOf(disk); b != nil && *b.Sharing == "sharingMultiWriter" && snapshotted(disk) {
			return nil, &types.GenericVmConfigFault{Reason: "Cannot take a snapshot of a virtual machine with a multi-writer disk."}
		}
	}
	depth := 0
	for at := m.snapshot(m.Current); at != nil; at = m.snapshot(at.Parent) {
		depth++
	}
	if depth >= 32 {
		return nil, &types.TooManySnapshotLevels{}
	}
	running := m.Power == "poweredOn"
	if quiesce && running && m.Quiesce == "fail" {
		return nil, &types.ApplicationQuiesceFault{}
	}
	one := &Snapshot{
		Moref: l.reference("VirtualMachineSnapshot", "snapshot").Value, Parent: m.Current, Name: name,
		Description: description, Id: m.NextSnapshot, Created: time.Now().UTC(), Power: m.Power,
		Quiesced: quiesce && running && m.Quiesce == "ok",
	}
	if err := l.freezeDisks(m, one); err != nil {
		return nil, &types.FileFault{File: err.Error()}
	}
	m.Snapshots = append(m.Snapshots, one)
	m.Current = one.Moref
	m.NextSnapshot++
	l.touch(m, fmt.Sprintf("%s-Snapshot%d.vmsn", m.Config.Name, one.Id))
	if err := l.save(m); err != nil {
		return nil, &types.FileFault{File: err.Error()}
	}
	return one.ref(), nil
}

// freezeDisks takes the machine's state into a snapshot and puts a delta before each disk that snapshots take along.
func (l *Lab) freezeDisks(m *Machine, one *Snapshot) error {
	for _, disk := range disksOf(m.Config) {
		if t := m.Disks[disk.Key]; t != nil && m.tracking() && m.Supported && snapshotted(disk) {
			t.begin()
		}
	}
	l.normalise(m)
	one.Config = &types.VirtualMachineConfigInfo{}
	copyOf(m.Config, one.Config)
	for _, disk := range disksOf(m.Config) {
		if !snapshotted(disk) {
			continue
		}
		b, t := backingOf(disk), m.Disks[disk.Key]
		if err := l.freeze(m, one.Moref, disk.Key); err != nil {
			return err
		}
		parent, err := l.layer(m.Center, *b.FileName)
		if err != nil {
			return err
		}
		delta, err := l.makeDelta(parent)
		if err != nil {
			return err
		}
		*b.FileName = delta.Path
		t.Epoch++
	}
	// Disks outside the snapshot have no change id there.
	for _, disk := range disksOf(one.Config) {
		if b := backingOf(disk); b != nil && !snapshotted(disk) {
			*b.ChangeId = ""
		}
	}
	return nil
}

// touch makes an empty file beside the machine's, as snapshots leave them.
func (l *Lab) touch(m *Machine, name string) {
	file, _, err := l.local(m.Center, m.Config.Files.SnapshotDirectory+"/"+name)
	if err == nil {
		err = os.WriteFile(file, nil, 0o644)
	}
	if err != nil {
		l.note("%s: %s", name, err)
	}
}

func removeSnapshot(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.RemoveSnapshot_Task)
	m := c.lab.ownerOf(req.This)
	if m == nil {
		return nil, notFound(req.This)
	}
	// Without the word a host merges the deltas too.
	merge := req.Consolidate == nil || *req.Consolidate
	task := c.start("RemoveSnapshot_Task", m.ref(), m, func() (types.AnyType, types.BaseMethodFault) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.snapshot(req.This.Value) == nil {
			return nil, &types.ManagedObjectNotFound{Obj: req.This}
		}
		gone := []string{req.This.Value}
		if req.RemoveChildren {
			gone = m.below(req.This.Value)
		}
		return nil, c.lab.dropSnapshots(m, gone, merge)
	})
	return &types.RemoveSnapshot_TaskResponse{Returnval: task}, nil
}

func removeAllSnapshots(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.RemoveAllSnapshots_Task)
	m := c.lab.machine(req.This)
	if m == nil {
		return nil, notFound(req.This)
	}
	merge := req.Consolidate == nil || *req.Consolidate
	task := c.start("RemoveAllSnapshots_Task", req.This, m, func() (types.AnyType, types.BaseMethodFault) {
		m.mu.Lock()
		defer m.mu.Unlock()
		var gone []string
		for _, one := range m.Snapshots {
			gone = append(gone, one.Moref)
		}
		return nil, c.lab.dropSnapshots(m, gone, merge)
	})
	return &types.RemoveAllSnapshots_TaskResponse{Returnval: task}, nil
}

// below lists a snapshot and all under it.
func (m *Machine) below(moref string) []string {
	found := []string{moref}
	for _, one := range m.Snapshots {
		if one.Parent == moref {
			found = append(found, m.below(one.Moref)...)
		}
	}
	return found
}

// ownerOf finds the machine of a snapshot.
func (l *Lab) ownerOf(snapshot types.ManagedObjectReference) *Machine {
	for _, m := range l.all() {
		m.mu.RLock()
		found := m.snapshot(snapshot.Value)
		m.mu.RUnlock()
		if found != nil {
			return m
		}
	}
	return nil
}

// dropSnapshots takes snapshots out of the tree and merges the deltas that nothing needs any more.
func (l *Lab) dropSnapshots(m *Machine, gone []string, merge bool) types.BaseMethodFault {
	var left []string
	var dropped []*Snapshot
	for _, moref := range gone {
		one := m.snapshot(moref)
		if one == nil {
			continue
		}
		for _, disk := range disksOf(one.Config) {
			if b := backingOf(disk); b != nil && snapshotted(disk) {
				left = append(left, *b.FileName)
			}
		}
		var kept []*Snapshot
		for _, other := range m.Snapshots {
			if other.Parent == moref {
				other.Parent = one.Parent
			}
			if other != one {
				kept = append(kept, other)
			}
		}
		m.Snapshots = kept
		if m.Current == moref {
			m.Current = one.Parent
		}
		simulator.Map.Remove(one.ref())
		dropped = append(dropped, one)
	}
	var err error
	if merge {
		m.Consolidation = m.Consolidation && len(m.Snapshots) > 0
		err = l.collapseAndSave(m, left)
	} else {
		m.Consolidation = true
		err = l.save(m)
	}
	for _, one := range dropped {
		l.removeFrozen(m, one)
	}
	if err != nil {
		m.Consolidation = true
		return &types.FileFault{File: err.Error()}
	}
	return nil
}

func (l *Lab) removeFrozen(m *Machine, one *Snapshot) {
	for _, disk := range disksOf(one.Config) {
		_ = os.Remove(l.frozenPath(m, one.Moref, disk.Key))
	}
	if file, _, err := l.local(m.Center, fmt.Sprintf("%s/%s-Snapshot%d.vmsn", m.Config.Files.SnapshotDirectory, m.Config.Name, one.Id)); err == nil {
		_ = os.Remove(file)
	}
}

func renameSnapshot(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.RenameSnapshot)
	m := c.lab.ownerOf(req.This)
	if m == nil {
		return nil, notFound(req.This)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	one := m.snapshot(req.This.Value)
	text(&req.Name, one.Name)
	text(&req.Description, one.Description)
	one.Name, one.Description = req.Name, req.Description
	if err := c.lab.save(m); err != nil {
		return nil, faultOf(&types.FileFault{File: err.Error()}, "%s", err)
	}
	return &types.RenameSnapshotResponse{}, nil
}
