package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func init() {
	methods["CreateVM_Task"] = createVM
	methods["RegisterVM_Task"] = registerVM
	methods["ReconfigVM_Task"] = reconfigVM
	methods["VirtualMachine.Rename_Task"] = renameVM
	methods["PowerOnVM_Task"] = powerOn
	methods["PowerOffVM_Task"] = powerOff
	methods["ShutdownGuest"] = shutdownGuest
	methods["MarkAsTemplate"] = markAsTemplate
	methods["MarkAsVirtualMachine"] = markAsMachine
	methods["RefreshStorageInfo"] = func(*call) (interface{}, *soap.Fault) { return &types.RefreshStorageInfoResponse{}, nil }
}

func createVM(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.CreateVM_Task)
	task := c.start("CreateVM_Task", req.This, nil, func() (types.AnyType, types.BaseMethodFault) {
		m, fault := c.lab.create(req.This, req.Config, req.Pool, req.Host)
		if fault != nil {
			return nil, fault
		}
		return m.ref(), nil
	})
	return &types.CreateVM_TaskResponse{Returnval: task}, nil
}

// create makes a new machine, powered off; also for imports.
func (l *Lab) create(folder types.ManagedObjectReference, spec types.VirtualMachineConfigSpec,
	pool types.ManagedObjectReference, host *types.ManagedObjectReference) (*Machine, types.BaseMethodFault) {
	if spec.Name == "" {
		return nil, &types.InvalidVmConfig{Property: "configSpec.name"}
	}
	if spec.Files == nil || spec.Files.VmPathName == "" {
		return nil, &types.InvalidVmConfig{Property: "configSpec.files.vmPathName"}
	}
	center := datacenterOf(folder)
	store, _, err := splitPath(spec.Files.VmPathName)
	if err != nil || l.store(center, store) == nil {
		return nil, &types.InvalidDatastorePath{DatastorePath: spec.Files.VmPathName}
	}
	if fault := duplicateName(folder, spec.Name, nil); fault != nil {
		return nil, fault
	}
	on, fault := l.placeOn(center, &pool, host, store)
	if fault != nil {
		return nil, fault
	}
	vmx, fault := l.vmxFor(center, spec.Files.VmPathName, spec.Name)
	if fault != nil {
		return nil, fault
	}
	m := l.newMachine(center, pathOf(folder), spec.Name)
	m.Host, m.Pool = on.Self.Value, pool.Value
	m.settle(vmx)
	if spec.InstanceUuid != "" && l.known(spec.InstanceUuid) {
		spec.InstanceUuid = "" // vCenter gives another
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	l.place(m)
	if fault := l.configure(m, &spec); fault != nil {
		if err := l.forgetUnsaved(m); err != nil {
			l.note("%s: %s", spec.Name, err)
		}
		return nil, fault
	}
	return m, nil
}

// forgetUnsaved takes back a machine that could not be made.
func (l *Lab) forgetUnsaved(m *Machine) error {
	m.gone = true
	l.displace(m)
	file, _, err := l.local(m.Center, m.Config.Files.VmPathName)
	if err == nil {
		_ = os.Remove(file)
		_ = os.Remove(filepath.Dir(file))
	}
	_ = os.Remove(l.recordPath(m))
	return os.RemoveAll(filepath.Join(l.folder, "state", "tracking", m.Moref))
}

func (l *Lab) known(instance string) bool {
	for _, one := range l.all() {
		one.mu.RLock()
		found := strings.EqualFold(one.Config.InstanceUuid, instance)
		one.mu.RUnlock()
		if found {
			return true
		}
	}
	return false
}

func duplicateName(folder types.ManagedObjectReference, name string, but *types.ManagedObjectReference) types.BaseMethodFault {
	one, ok := simulator.Map.Get(folder).(*simulator.Folder)
	if !ok {
		return &types.ManagedObjectNotFound{Obj: folder}
	}
	if found := simulator.Map.FindByName(name, one.ChildEntity); found != nil && (but == nil || found.Reference() != *but) {
		return &types.DuplicateName{Name: name, Object: found.Reference()}
	}
	return nil
}

// placeOn finds the host for a machine: the one asked for, or the first of the pool's that mounts the datastore.
func (l *Lab) placeOn(center string, pool, host *types.ManagedObjectReference, store string) (*simulator.HostSystem, types.BaseMethodFault) {
	at := l.store(center, store)
	if at == nil {
		return nil, &types.InvalidDatastore{Name: store}
	}
	var hosts []types.ManagedObjectReference
	if pool != nil {
		one, ok := simulator.Map.Get(*pool).(*simulator.ResourcePool)
		if !ok {
			return nil, &types.ManagedObjectNotFound{Obj: *pool}
		}
		hosts = computeBy(one.Owner).Host
	}
	if host != nil {
		if pool != nil && !containsRef(hosts, *host) {
			return nil, &types.InvalidArgument{InvalidProperty: "host"}
		}
		hosts = []types.ManagedObjectReference{*host}
	}
	for _, ref := range hosts {
		one, ok := simulator.Map.Get(ref).(*simulator.HostSystem)
		if ok && containsRef(one.Datastore, at.Ref) {
			return one, nil
		}
	}
	return nil, &types.InvalidDatastore{Name: store, Datastore: &at.Ref}
}

func containsRef(list []types.ManagedObjectReference, ref types.ManagedObjectReference) bool {
	for _, one := range list {
		if one == ref {
			return true
		}
	}
	return false
}

// vmxFor names a new machine's vmx file and makes its folder: "[ds]" takes a folder of the machine's name, with _1 and
// so on where that is taken.
func (l *Lab) vmxFor(center, asked, name string) (string, types.BaseMethodFault) {
	store, file, _ := splitPath(asked)
	if strings.HasSuffix(file, ".vmx") {
		local, _, _ := l.local(center, asked)
		if _, err := os.Stat(local); err == nil {
			return "", &types.FileAlreadyExists{FileFault: types.FileFault{File: asked}}
		}
		if err := os.MkdirAll(filepath.Dir(local), 0o755); err != nil {
			return "", &types.FileFault{File: asked}
		}
		return joinPath(store, file), nil
	}
	for n := 0; ; n++ {
		folder := path.Join(file, name)
		if n > 0 {
			folder = fmt.Sprintf("%s_%d", folder, n)
		}
		local, _, _ := l.local(center, joinPath(store, folder))
		err := os.Mkdir(local, 0o755)
		if os.IsExist(err) {
			continue
		}
		if err != nil {
			return "", &types.FileFault{File: asked}
		}
		return joinPath(store, folder+"/"+name+".vmx"), nil
	}
}

func registerVM(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.RegisterVM_Task)
	task := c.start("RegisterVM_Task", req.This, nil, func() (types.AnyType, types.BaseMethodFault) {
		return c.lab.register(req)
	})
	return &types.RegisterVM_TaskResponse{Returnval: task}, nil
}

// register takes a machine from a vmx file that lies on a datastore, with the disks it names.
func (l *Lab) register(req *types.RegisterVM_Task) (types.AnyType, types.BaseMethodFault) {
	center := datacenterOf(req.This)
	store, file, err := splitPath(req.Path)
	if err != nil {
		return nil, &types.InvalidDatastorePath{DatastorePath: req.Path}
	}
	if req.AsTemplate && req.Pool != nil || !req.AsTemplate && req.Pool == nil {
		return nil, &types.InvalidArgument{InvalidProperty: "pool"}
	}
	if req.AsTemplate && req.Host == nil {
		return nil, &types.InvalidArgument{InvalidProperty: "host"}
	}
	for _, one := range l.all() {
		one.mu.RLock()
		taken := one.Center == center && one.Config.Files.VmPathName == joinPath(store, file)
		one.mu.RUnlock()
		if taken {
			return nil, &types.AlreadyExists{Name: req.Path}
		}
	}
	local, _, err := l.local(center, req.Path)
	if err != nil {
		return nil, &types.InvalidDatastorePath{DatastorePath: req.Path}
	}
	content, err := readHead(local, 1<<20)
	if err != nil {
		return nil, &types.FileNotFound{FileFault: types.FileFault{File: req.Path}}
	}
	on, fault := l.placeOn(center, req.Pool, req.Host, store)
	if fault != nil {
		return nil, fault
	}
	m := l.newMachine(center, pathOf(req.This), strings.TrimSuffix(path.Base(file), ".vmx"))
	m.Host = on.Self.Value
	if req.Pool != nil {
		m.Pool = req.Pool.Value
	}
	m.settle(joinPath(store, file))
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := l.readVmx(m, content, store, path.Dir(file)); err != nil {
		l.note("%s cannot be registered: %s", req.Path, err)
		_ = os.RemoveAll(filepath.Join(l.folder, "state", "tracking", m.Moref))
		if os.IsNotExist(err) || strings.Contains(err.Error(), "no such file") {
			return nil, &types.FileNotFound{FileFault: types.FileFault{File: err.Error()}}
		}
		return nil, &types.InvalidVmConfig{Property: err.Error()}
	}
	text(&req.Name, m.Config.Name)
	if fault := duplicateName(req.This, req.Name, nil); fault != nil {
		return nil, fault
	}
	m.Config.Name, m.Config.Template = req.Name, req.AsTemplate
	if l.known(m.Config.InstanceUuid) {
		m.Config.InstanceUuid = uuidFor("instance", req.Name, fmt.Sprint(l.unique()))
	}
	l.place(m)
	if err := l.save(m); err != nil {
		return nil, &types.FileFault{File: err.Error()}
	}
	return m.ref(), nil
}

func reconfigVM(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.ReconfigVM_Task)
	m := c.lab.machine(req.This)
	if m == nil {
		return nil, notFound(req.This)
	}
	task := c.start("ReconfigVM_Task", req.This, m, func() (types.AnyType, types.BaseMethodFault) {
		if req.Spec.Name != "" {
			folder := c.lab.folderOf(m.Center, m.Folder)
			if fault := duplicateName(folder, req.Spec.Name, &req.This); fault != nil {
				return nil, fault
			}
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.gone {
			return nil, &types.ManagedObjectNotFound{Obj: req.This}
		}
		return nil, c.lab.configure(m, &req.Spec)
	})
	return &types.ReconfigVM_TaskResponse{Returnval: task}, nil
}

func renameVM(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.Rename_Task)
	m := c.lab.machine(req.This)
	if m == nil {
		return nil, notFound(req.This)
	}
	task := c.start("Rename_Task", req.This, m, func() (types.AnyType, types.BaseMethodFault) {
		if fault := duplicateName(c.lab.folderOf(m.Center, m.Folder), req.NewName, &req.This); fault != nil {
			return nil, fault
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		return nil, c.lab.configure(m, &types.VirtualMachineConfigSpec{Name: req.NewName})
	})
	return &types.Rename_TaskResponse{Returnval: task}, nil
}

func powerOn(c *call) (interface{}, *soap.Fault) {
	task, fault := c.powerTask("PowerOnVM_Task", "poweredOn")
	return &types.PowerOnVM_TaskResponse{Returnval: task}, fault
}

func powerOff(c *call) (interface{}, *soap.Fault) {
	task, fault := c.powerTask("PowerOffVM_Task", "poweredOff")
	return &types.PowerOffVM_TaskResponse{Returnval: task}, fault
}

func (c *call) powerTask(name, state string) (types.ManagedObjectReference, *soap.Fault) {
	m := c.lab.machine(c.this)
	if m == nil {
		return c.this, notFound(c.this)
	}
	if blocked := c.lab.leaseBlocks(m.Moref); blocked != nil && state == "poweredOn" {
		return c.this, blocked
	}
	return c.start(name, c.this, m, func() (types.AnyType, types.BaseMethodFault) {
		return nil, c.lab.power(m, state)
	}), nil
}

func (l *Lab) power(m *Machine, state string) types.BaseMethodFault {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Config.Template {
		return &types.NotSupported{}
	}
	if m.Power == state {
		return &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerState(state),
			ExistingState: types.VirtualMachinePowerState(m.Power)}
	}
	if state == "poweredOn" {
		for _, disk := range disksOf(m.Config) {
			b := backingOf(disk)
			if b == nil {
				continue
			}
			layers, err := l.chain(m.Center, *b.FileName)
			if err == nil {
				var reader *Chain
				if reader, err = openReader(layers); err == nil {
					reader.Close()
				}
			}
			if err != nil {
				return &types.FileNotFound{FileFault: types.FileFault{File: *b.FileName}}
			}
		}
		if file, _, err := l.local(m.Center, l.nvramPath(m)); err == nil {
			if _, err := os.Stat(file); os.IsNotExist(err) {
				_ = os.WriteFile(file, []byte(strings.Repeat("NVRAM, new ", 800)), 0o644)
			}
		}
	}
	m.Power = state
	if err := l.save(m); err != nil {
		return &types.FileFault{File: err.Error()}
	}
	return nil
}

func shutdownGuest(c *call) (interface{}, *soap.Fault) {
	m := c.lab.machine(c.this)
	if m == nil {
		return nil, notFound(c.this)
	}
	m.mu.RLock()
	tools := m.Quiesce != "noTools"
	m.mu.RUnlock()
	if !tools {
		return nil, faultOf(&types.ToolsUnavailable{}, "VMware Tools are not running")
	}
	if fault := c.lab.power(m, "poweredOff"); fault != nil {
		return nil, faultOf(fault, "%s", sayFault(fault))
	}
	return &types.ShutdownGuestResponse{}, nil
}

func markAsTemplate(c *call) (interface{}, *soap.Fault) {
	return &types.MarkAsTemplateResponse{}, c.mark(true, "")
}

func markAsMachine(c *call) (interface{}, *soap.Fault) {
	return &types.MarkAsVirtualMachineResponse{}, c.mark(false, c.body.(*types.MarkAsVirtualMachine).Pool.Value)
}

func (c *call) mark(template bool, pool string) *soap.Fault {
	m := c.lab.machine(c.this)
	if m == nil {
		return notFound(c.this)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Config.Template == template {
		return faultOf(&types.NotSupported{}, "It is one already")
	}
	if m.Power != "poweredOff" {
		return faultOf(&types.InvalidPowerState{RequestedState: "poweredOff",
			ExistingState: types.VirtualMachinePowerState(m.Power)}, "The machine is running")
	}
	// The lists of machines that pools keep are made anew.
	ref := m.ref()
	if old := poolOf(m); old != nil {
		simulator.Map.RemoveReference(old, &old.Vm, ref)
	}
	m.Config.Template, m.Pool = template, pool
	if now := poolOf(m); now != nil {
		simulator.Map.AddReference(now, &now.Vm, ref)
	}
	if err := c.lab.save(m); err != nil {
		return faultOf(&types.FileFault{File: err.Error()}, "%s", err)
	}
	return nil
}
