package main

import (
	"os"
	"path/filepath"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func init() {
	handlers := map[string]handler{"Destroy_Task": destroy, "UnregisterVM": unregister}
	for name, one := range handlers {
		methods["VirtualMachine."+name] = one
	}
}

func destroy(c *call) (interface{}, *soap.Fault) {
	m := c.lab.machine(c.this)
	if m == nil {
		return nil, notFound(c.this)
	}
	if blocked := c.lab.leaseBlocks(m.Moref); blocked != nil {
		return nil, blocked
	}
	task := c.start("Destroy_Task", c.this, m, func() (types.AnyType, types.BaseMethodFault) {
		return nil, c.lab.destroy(m)
	})
	return &types.Destroy_TaskResponse{Returnval: task}, nil
}

// destroy removes a machine with its disks; what lies in its folder and is no file of its own stays.
func (l *Lab) destroy(m *Machine) types.BaseMethodFault {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Power != "poweredOff" {
		return &types.InvalidPowerState{RequestedState: "poweredOff", ExistingState: types.VirtualMachinePowerState(m.Power)}
	}
	if m.gone {
		return &types.ManagedObjectNotFound{Obj: m.ref()}
	}
	layers, _, err := l.layersOf(m, nil)
	if err != nil {
		l.note("%s: %s", m.Config.Name, err) // a broken chain: what is left of it goes
	}
	for _, one := range m.Snapshots {
		l.removeFrozen(m, one)
	}
	if err := l.forget(m); err != nil {
		return &types.FileFault{File: err.Error()}
	}
	for _, y := range layers {
		if err := removeLayer(y); err != nil {
			return &types.FileFault{File: err.Error()}
		}
	}
	for _, name := range []string{m.Config.Files.VmPathName, l.nvramPath(m)} {
		if file, _, err := l.local(m.Center, name); err == nil {
			_ = os.Remove(file)
			_ = os.Remove(filepath.Dir(file)) // goes only when nothing is in it
		}
	}
	return nil
}

// discard is destroy whatever the power state: for machines whose import was given up.
func (l *Lab) discard(m *Machine) {
	m.mu.Lock()
	m.Power = "poweredOff"
	m.mu.Unlock()
	if fault := l.destroy(m); fault != nil {
		l.note("%s cannot be discarded: %s", m.name(), sayFault(fault))
	}
}

func unregister(c *call) (interface{}, *soap.Fault) {
	m := c.lab.machine(c.this)
	if m == nil {
		return nil, notFound(c.this)
	}
	if blocked := c.lab.leaseBlocks(m.Moref); blocked != nil {
		return nil, blocked
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Power != "poweredOff" {
		return nil, faultOf(&types.InvalidPowerState{RequestedState: "poweredOff",
			ExistingState: types.VirtualMachinePowerState(m.Power)}, "The machine is running")
	}
	if err := c.lab.forget(m); err != nil {
		return nil, faultOf(&types.FileFault{File: err.Error()}, "%s", err)
	}
	return &types.UnregisterVMResponse{}, nil
}
