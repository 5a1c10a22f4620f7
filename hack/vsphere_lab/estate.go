package main

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Calls about where machines lie and what is said of them: folders, hosts, datastores, attributes, privileges.

func init() {
	methods["MoveIntoFolder_Task"] = moveIntoFolder
	methods["RelocateVM_Task"] = relocate
	methods["MigrateVM_Task"] = migrate
	methods["SetField"] = setField
	methods["SetCustomValue"] = setCustomValue
	methods["setCustomValue"] = setCustomValue
	methods["HasPrivilegeOnEntities"] = hasPrivileges
	methods["RefreshDatastore"] = func(*call) (interface{}, *soap.Fault) { return &types.RefreshDatastoreResponse{}, nil }
	methods["RefreshDatastoreStorageInfo"] = func(*call) (interface{}, *soap.Fault) {
		return &types.RefreshDatastoreStorageInfoResponse{}, nil
	}
	methods["SearchDatastore_Task"] = searchDatastore
	methods["SearchDatastoreSubFolders_Task"] = searchSubFolders
}

func moveIntoFolder(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.MoveIntoFolder_Task)
	for _, ref := range req.List {
		if ref.Type != "VirtualMachine" {
			return c.pass()
		}
	}
	task := c.start("MoveIntoFolder_Task", req.This, nil, func() (types.AnyType, types.BaseMethodFault) {
		for _, ref := range req.List {
			m := c.lab.machine(ref)
			if m == nil {
				return nil, &types.ManagedObjectNotFound{Obj: ref}
			}
			if fault := c.lab.moveTo(m, req.This); fault != nil {
				return nil, fault
			}
		}
		return nil, nil
	})
	return &types.MoveIntoFolder_TaskResponse{Returnval: task}, nil
}

// moveTo puts a machine into another folder of its datacenter.
func (l *Lab) moveTo(m *Machine, folder types.ManagedObjectReference) types.BaseMethodFault {
	into, ok := simulator.Map.Get(folder).(*simulator.Folder)
	if !ok || datacenterOf(folder) != m.Center {
		return &types.NotSupported{}
	}
	name := m.name()
	ref := m.ref()
	if fault := duplicateName(folder, name, &ref); fault != nil {
		return fault
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := simulator.Map.Get(l.folderOf(m.Center, m.Folder)).(*simulator.Folder)
	simulator.Map.RemoveReference(old, &old.ChildEntity, ref)
	simulator.Map.AddReference(into, &into.ChildEntity, ref)
	vm := simulator.Map.Get(ref).(*simulator.VirtualMachine)
	simulator.Map.WithLock(vm, func() {
		simulator.Map.Update(vm, []types.PropertyChange{{Name: "parent", Val: folder}})
	})
	m.Folder = pathOf(folder)
	if err := l.save(m); err != nil {
		return &types.FileFault{File: err.Error()}
	}
	return nil
}

func migrate(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.MigrateVM_Task)
	task, fault := c.relocation("MigrateVM_Task", types.VirtualMachineRelocateSpec{Host: req.Host, Pool: req.Pool})
	return &types.MigrateVM_TaskResponse{Returnval: task}, fault
}

func relocate(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.RelocateVM_Task)
	task, fault := c.relocation("RelocateVM_Task", req.Spec)
	return &types.RelocateVM_TaskResponse{Returnval: task}, fault
}

func (c *call) relocation(name string, spec types.VirtualMachineRelocateSpec) (types.ManagedObjectReference, *soap.Fault) {
	m := c.lab.machine(c.this)
	if m == nil {
		return c.this, notFound(c.this)
	}
	if blocked := c.lab.leaseBlocks(m.Moref); blocked != nil {
		return c.this, blocked
	}
	return c.start(name, c.this, m, func() (types.AnyType, types.BaseMethodFault) {
		if spec.Folder != nil {
			if fault := c.lab.moveTo(m, *spec.Folder); fault != nil {
				return nil, fault
			}
		}
		return nil, c.lab.relocate(m, spec.Host, spec.Pool, spec.Datastore)
	}), nil
}

// relocate moves a machine to another host or datastore, its disks with their snapshots.
func (l *Lab) relocate(m *Machine, host, pool, datastore *types.ManagedObjectReference) types.BaseMethodFault {
	m.mu.Lock()
	defer m.mu.Unlock()
	ref := m.ref()
	if datastore != nil {
		store := l.storeBy(*datastore)
		if store == nil {
			return &types.InvalidDatastore{Datastore: datastore}
		}
		if err := l.moveFiles(m, store); err != nil {
			return fileFaultOf(err)
		}
	}
	if host != nil {
		to, ok := simulator.Map.Get(*host).(*simulator.HostSystem)
		if !ok {
			return &types.ManagedObjectNotFound{Obj: *host}
		}
		from := simulator.Map.Get(types.ManagedObjectReference{Type: "HostSystem", Value: m.Host}).(*simulator.HostSystem)
		simulator.Map.RemoveReference(from, &from.Vm, ref)
		simulator.Map.AddReference(to, &to.Vm, ref)
		m.Host = host.Value
		if pool == nil && computeOf(from).Self != computeOf(to).Self && m.Pool != "" {
			pool = computeOf(to).ResourcePool
		}
	}
	if pool != nil {
		if old := poolOf(m); old != nil {
			simulator.Map.RemoveReference(old, &old.Vm, ref)
		}
		m.Pool = pool.Value
		if now := poolOf(m); now != nil {
			simulator.Map.AddReference(now, &now.Vm, ref)
		}
	}
	if err := l.save(m); err != nil {
		return &types.FileFault{File: err.Error()}
	}
	return nil
}

// moveFiles moves everything of a machine to another datastore. As a host does it, change tracking begins anew.
func (l *Lab) moveFiles(m *Machine, store *Datastore) error {
	if store.Datacenter != m.Center {
		return fmt.Errorf("%s is of another datacenter", store.Name)
	}
	_, file, err := splitPath(m.Config.Files.VmPathName)
	if err != nil {
		return err
	}
	layers, _, err := l.layersOf(m, nil)
	if err != nil {
		return err
	}
	names := map[string]string{}
	for name := range layers {
		old, inside, err := splitPath(name)
		if err != nil {
			return err
		}
		names[name] = joinPath(store.Name, path.Dir(file)+"/"+path.Base(inside))
		if old == store.Name && path.Dir(inside) == path.Dir(file) {
			names[name] = name
		}
	}
	for name, y := range layers {
		if names[name] == name {
			continue
		}
		if err := l.moveLayer(y, names[name], names[y.Parent], store); err != nil {
			return err
		}
	}
	m.references(func(_ *types.VirtualMachineConfigInfo, _ *types.VirtualDisk, file *string, owner *Snapshot) {
		*file = names[*file]
		if owner != nil {
			owner.ConfigXML = ""
		}
	})
	oldFolder := m.Config.Files.SnapshotDirectory
	oldVmx, oldNvram := m.Config.Files.VmPathName, l.nvramPath(m)
	m.settle(joinPath(store.Name, file))
	moves := map[string]string{oldVmx: m.Config.Files.VmPathName, oldNvram: l.nvramPath(m)}
	for _, one := range m.Snapshots {
		name := fmt.Sprintf("/%s-Snapshot%d.vmsn", m.Config.Name, one.Id)
		moves[oldFolder+name] = m.Config.Files.SnapshotDirectory + name
	}
	for from, to := range moves {
		source, _, _ := l.local(m.Center, from)
		target, _, _ := l.local(m.Center, to)
		if source == target {
			continue
		}
		if err := os.MkdirAll(path.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.Rename(source, target); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	if folder, _, err := l.local(m.Center, oldFolder); err == nil {
		_ = os.Remove(folder) // goes only when nothing is in it
	}
	for _, one := range m.Disks {
		if one.Uuid != "" {
			one.Uuid = ""
			one.begin()
		}
	}
	return l.settleChains(m)
}

func (l *Lab) moveLayer(y *Layer, name, parent string, store *Datastore) error {
	target, _, err := l.local(y.Center, name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(path.Dir(target), 0o755); err != nil {
		return err
	}
	old := *y
	y.Path, y.Descriptor, y.Parent = name, target, parent
	id := uuidFor("object", name, fmt.Sprint(l.unique()))
	switch {
	case y.raw():
		y.Extent = path.Join(path.Dir(target), y.ExtentName)
	case store.objects():
		y.ExtentName = strings.ToLower(store.Type) + "://" + id
		y.Extent = path.Join(l.folder, "objects", id)
	default:
		suffix := "-flat.vmdk"
		if y.Kind == "VMFSSPARSE" {
			suffix = "-delta.vmdk"
		} else if y.Kind == "SESPARSE" {
			suffix = "-sesparse.vmdk"
		}
		y.ExtentName = strings.TrimSuffix(path.Base(target), ".vmdk") + suffix
		y.Extent = path.Join(path.Dir(target), y.ExtentName)
	}
	if err := os.Rename(old.Extent, y.Extent); err != nil {
		return err
	}
	if err := y.write(); err != nil {
		return err
	}
	return os.Remove(old.Descriptor)
}

func setCustomValue(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.SetCustomValue)
	m := c.lab.machine(req.This)
	if m == nil {
		return c.pass()
	}
	return &types.SetCustomValueResponse{}, c.lab.setAttribute(m, req.Key, req.Value)
}

func setField(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.SetField)
	m := c.lab.machine(req.Entity)
	if m == nil {
		return c.pass()
	}
	for _, one := range simulator.Map.CustomFieldsManager().Field {
		if one.Key == req.Key {
			return &types.SetFieldResponse{}, c.lab.setAttribute(m, one.Name, req.Value)
		}
	}
	return nil, faultOf(&types.InvalidArgument{InvalidProperty: "key"}, "A specified parameter was not correct: key")
}

func (l *Lab) setAttribute(m *Machine, name, value string) *soap.Fault {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Attributes == nil {
		m.Attributes = map[string]string{}
	}
	if value == "" {
		delete(m.Attributes, name)
	} else {
		m.Attributes[name] = value
	}
	if err := l.save(m); err != nil {
		return faultOf(&types.FileFault{File: err.Error()}, "%s", err)
	}
	return nil
}

// hasPrivileges grants everything but what the mode deniedPrivileges names.
func hasPrivileges(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.HasPrivilegeOnEntities)
	denied := c.lab.mode().DeniedPrivileges
	response := &types.HasPrivilegeOnEntitiesResponse{}
	for _, ref := range req.Entity {
		if _, ok := simulator.Map.Get(ref).(mo.Entity); !ok {
			return nil, notFound(ref)
		}
		one := types.EntityPrivilege{Entity: ref}
		for _, id := range req.PrivId {
			one.PrivAvailability = append(one.PrivAvailability, types.PrivilegeAvailability{
				PrivId: id, IsGranted: !contains(denied, id)})
		}
		response.Returnval = append(response.Returnval, one)
	}
	return response, nil
}
