package main

import (
	"fmt"
	"os"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// references calls back for every place that names a machine's disk files: the live disks, and the snapshots'.
func (m *Machine) references(found func(config *types.VirtualMachineConfigInfo, disk *types.VirtualDisk, file *string, owner *Snapshot)) {
	each := func(config *types.VirtualMachineConfigInfo, owner *Snapshot) {
		for _, disk := range disksOf(config) {
			if b := backingOf(disk); b != nil {
				found(config, disk, b.FileName, owner)
			}
		}
	}
	each(m.Config, nil)
	for _, one := range m.Snapshots {
		each(one.Config, one)
	}
}

// layersOf collects the layers of a machine by path: the chains of what is referenced, and of the files named.
func (l *Lab) layersOf(m *Machine, also []string) (map[string]*Layer, map[string]bool, error) {
	layers, referenced := map[string]*Layer{}, map[string]bool{}
	var failed error
	add := func(file string) {
		chain, err := l.chain(m.Center, file)
		if err != nil {
			failed = err
			return
		}
		for _, y := range chain {
			if layers[y.Path] == nil {
				layers[y.Path] = y
			}
		}
	}
	m.references(func(_ *types.VirtualMachineConfigInfo, _ *types.VirtualDisk, file *string, _ *Snapshot) {
		referenced[*file] = true
		add(*file)
	})
	for _, file := range also {
		if local, _, err := l.local(m.Center, file); err == nil {
			if _, err := os.Stat(local); err == nil {
				add(file)
			}
		}
	}
	return layers, referenced, failed
}

// collapse merges every delta whose parent nobody refers to into that parent, and gives the files that are left over,
// to be removed once the record is saved. also names files that may have lost their last reference.
func (l *Lab) collapse(m *Machine, also []string) ([]*Layer, error) {
	layers, referenced, err := l.layersOf(m, also)
	if err != nil {
		return nil, err
	}
	var dead []*Layer
	for again := true; again; {
		again = false
		for _, y := range layers {
			if referenced[y.Path] {
				continue
			}
			var kids []*Layer
			for _, other := range layers {
				if other.Parent == y.Path {
					kids = append(kids, other)
				}
			}
			switch {
			case len(kids) == 0 && y.Parent != "":
				delete(layers, y.Path)
				dead, again = append(dead, y), true
			case len(kids) == 1:
				if err := l.absorb(m, y, kids[0], layers, referenced); err != nil {
					return dead, err
				}
				dead, again = append(dead, kids[0]), true
			}
			if again {
				break
			}
		}
	}
	return dead, nil
}

// absorb merges a delta into its parent, which takes its place.
func (l *Lab) absorb(m *Machine, parent, delta *Layer, layers map[string]*Layer, referenced map[string]bool) error {
	for _, one := range []*Layer{parent, delta} {
		if held(one.data()) {
			return fmt.Errorf("%s: Failed to lock the file", one.Path)
		}
	}
	if err := mergeInto(delta, parent); err != nil {
		return err
	}
	for _, other := range layers {
		if other.Parent == delta.Path {
			other.Parent = parent.Path
			if err := other.write(); err != nil {
				return err
			}
		}
	}
	delete(layers, delta.Path)
	if referenced[delta.Path] {
		delete(referenced, delta.Path)
		referenced[parent.Path] = true
	}
	m.references(func(_ *types.VirtualMachineConfigInfo, _ *types.VirtualDisk, file *string, owner *Snapshot) {
		if *file == delta.Path {
			*file = parent.Path
		}
		if owner != nil {
			owner.ConfigXML = ""
		}
	})
	return nil
}

// settleChains writes the new chains into the snapshots' disks; save does it for the live ones.
func (l *Lab) settleChains(m *Machine) error {
	for _, one := range m.Snapshots {
		for _, disk := range disksOf(one.Config) {
			b := backingOf(disk)
			if b == nil {
				continue
			}
			chain, err := l.chain(m.Center, *b.FileName)
			if err != nil {
				return err
			}
			setChain(disk, chain)
		}
		one.ConfigXML = ""
	}
	return nil
}

// collapseAndSave is collapse with what belongs around it. The record is saved first, with the mark that deltas are left:
// killed while a delta is merged, nothing may still refer to the parent that is being written. Files go last.
func (l *Lab) collapseAndSave(m *Machine, also []string) error {
	needed := m.Consolidation
	m.Consolidation = true
	if err := l.save(m); err != nil {
		return err
	}
	dead, err := l.collapse(m, also)
	m.Consolidation = needed || err != nil
	if settled := l.settleChains(m); err == nil {
		err = settled
	}
	if saved := l.save(m); err == nil {
		err = saved
	}
	for _, y := range dead {
		if err == nil {
			err = removeLayer(y)
		}
	}
	if err == nil {
		l.draw(m) // the layout without the files that are gone
	}
	return err
}

func consolidate(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.ConsolidateVMDisks_Task)
	m := c.lab.machine(req.This)
	if m == nil {
		return nil, notFound(req.This)
	}
	task := c.start("ConsolidateVMDisks_Task", req.This, m, func() (types.AnyType, types.BaseMethodFault) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.Consolidation = false
		if err := c.lab.collapseAndSave(m, nil); err != nil {
			m.Consolidation = true
			return nil, &types.FileFault{File: err.Error()}
		}
		return nil, nil
	})
	return &types.ConsolidateVMDisks_TaskResponse{Returnval: task}, nil
}

func revertToSnapshot(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.RevertToSnapshot_Task)
	m := c.lab.ownerOf(req.This)
	if m == nil {
		return nil, notFound(req.This)
	}
	task := c.start("RevertToSnapshot_Task", m.ref(), m, func() (types.AnyType, types.BaseMethodFault) {
		return nil, c.lab.revert(m, req.This.Value)
	})
	return &types.RevertToSnapshot_TaskResponse{Returnval: task}, nil
}

func revertToCurrent(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.RevertToCurrentSnapshot_Task)
	m := c.lab.machine(req.This)
	if m == nil {
		return nil, notFound(req.This)
	}
	m.mu.RLock()
	current := m.Current
	m.mu.RUnlock()
	if current == "" {
		return nil, faultOf(&types.NotFound{}, "The virtual machine has no snapshot")
	}
	task := c.start("RevertToCurrentSnapshot_Task", req.This, m, func() (types.AnyType, types.BaseMethodFault) {
		return nil, c.lab.revert(m, current)
	})
	return &types.RevertToCurrentSnapshot_TaskResponse{Returnval: task}, nil
}

// revert throws away what was written after a snapshot. The machine is off afterwards, as snapshots hold no memory here.
func (l *Lab) revert(m *Machine, moref string) types.BaseMethodFault {
	m.mu.Lock()
	defer m.mu.Unlock()
	one := m.snapshot(moref)
	if one == nil {
		return &types.ManagedObjectNotFound{Obj: types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: moref}}
	}
	fail := func(err error) types.BaseMethodFault { return &types.FileFault{File: err.Error()} }
	old := m.Config
	// Killed from here on, no id of before may be answered any more.
	kept := map[int32]Tracking{}
	for key, t := range m.Disks {
		kept[key] = Tracking{Uuid: t.Uuid, Epoch: t.Epoch}
		t.Uuid = ""
	}
	if err := l.save(m); err != nil {
		return fail(err)
	}
	var left []string
	for _, disk := range disksOf(old) {
		if b := backingOf(disk); b != nil && snapshotted(disk) {
			left = append(left, *b.FileName)
		}
	}
	config := &types.VirtualMachineConfigInfo{}
	copyOf(one.Config, config)
	config.Name, config.Files, config.InstanceUuid = old.Name, old.Files, old.InstanceUuid
	m.Config, m.Current, m.Power = config, moref, "poweredOff"
	for _, disk := range disksOf(config) {
		b := backingOf(disk)
		if b == nil || !snapshotted(disk) {
			continue
		}
		frozen, err := l.layer(m.Center, *b.FileName)
		if err != nil {
			return fail(err)
		}
		delta, err := l.makeDelta(frozen)
		if err != nil {
			return fail(err)
		}
		*b.FileName = delta.Path
		if err := l.revertTracking(m, one, disk, frozen, kept[disk.Key]); err != nil {
			return fail(err)
		}
	}
	if err := l.retrack(m); err != nil {
		return fail(err)
	}
	if err := l.collapseAndSave(m, left); err != nil {
		return fail(err)
	}
	return nil
}

func (l *Lab) revertTracking(m *Machine, one *Snapshot, disk *types.VirtualDisk, y *Layer, kept Tracking) error {
	if err := l.track(m, disk, y); err != nil {
		return err
	}
	t := m.Disks[disk.Key]
	frozen := &Tracking{}
	if err := frozen.open(l.frozenPath(m, one.Moref, disk.Key)); err != nil {
		return err
	}
	defer frozen.close()
	copy(t.epochs, frozen.epochs)
	if l.mode().RevertKeepsTracking {
		t.Uuid, t.Epoch = kept.Uuid, kept.Epoch
		return nil
	}
	t.restart()
	if kept.Uuid != "" {
		t.begin()
	}
	return nil
}
