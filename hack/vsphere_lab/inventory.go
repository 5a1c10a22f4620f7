package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/vpx"
	vim "github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Datastore is one datastore with the folder of this machine that holds its files.
type Datastore struct {
	Datacenter string
	Name       string
	Type       string
	Folder     string
	Ref        types.ManagedObjectReference
	Browser    types.ManagedObjectReference
}

// objects says that disks are objects here and have no flat file: vSAN and virtual volumes.
func (d *Datastore) objects() bool { return d.Type == "vsan" || d.Type == "VVOL" }

// inner is the context of what the peer itself does in the simulator.
var inner *simulator.Context

func newContext(user, key string) *simulator.Context {
	session := &simulator.Session{
		UserSession: types.UserSession{Key: key, UserName: user, FullName: user},
		Registry:    simulator.NewRegistry(),
	}
	return &simulator.Context{Context: context.Background(), Session: session, Map: simulator.Map}
}

// makeInventory builds everything but the machines, always in the same order, so that references survive a restart.
func (l *Lab) makeInventory() error {
	content := vpx.ServiceContent
	simulator.NewServiceInstance(content, vpx.RootFolder)
	instance := simulator.Map.Get(types.ManagedObjectReference{Type: "ServiceInstance", Value: "ServiceInstance"})
	instance.(*simulator.ServiceInstance).Content.About.InstanceUuid = uuidFor("vcenter", l.config.Username)
	instance.(*simulator.ServiceInstance).Content.About.ApiVersion = l.config.ApiVersion
	inner = newContext("vpxd", "vpxd")
	for _, one := range l.config.Datacenters {
		if err := l.makeDatacenter(one); err != nil {
			return fmt.Errorf("datacenter %s: %w", one.Name, err)
		}
	}
	// What is made from here on gets numbers that no earlier life of this vCenter gave.
	atomic.AddInt64((*int64)(unsafe.Pointer(simulator.Map)), int64(l.facts.Boots)*100_000)
	return nil
}

func (l *Lab) makeDatacenter(config DatacenterConfig) error {
	root := simulator.Map.Get(vpx.ServiceContent.RootFolder).(*simulator.Folder)
	made := root.CreateDatacenter(inner, &types.CreateDatacenter{This: root.Self, Name: config.Name})
	if made.Fault() != nil {
		return fmt.Errorf("%s", made.Fault().String)
	}
	center := simulator.Map.Get(made.(*vim.CreateDatacenterBody).Res.Returnval).(*simulator.Datacenter)
	hosts := simulator.Map.Get(center.HostFolder).(*simulator.Folder)
	for _, one := range config.Clusters {
		cluster, fault := simulator.CreateClusterComputeResource(inner, hosts, one.Name, types.ClusterConfigSpecEx{})
		if fault != nil {
			return fmt.Errorf("cluster %s: %T", one.Name, fault)
		}
		for _, name := range one.Hosts {
			spec := types.HostConnectSpec{HostName: name}
			task := cluster.AddHostTask(&types.AddHost_Task{This: cluster.Self, Spec: spec, AsConnected: true})
			if err := resultOf(task.(*vim.AddHost_TaskBody).Res.Returnval); err != nil {
				return fmt.Errorf("host %s: %w", name, err)
			}
		}
		for _, name := range one.Pools {
			makePool(*cluster.ResourcePool, name)
		}
	}
	for _, name := range config.Hosts {
		task := hosts.AddStandaloneHostTask(inner, &types.AddStandaloneHost_Task{
			This: hosts.Self, Spec: types.HostConnectSpec{HostName: name}, AddConnected: true})
		if err := resultOf(task.(*vim.AddStandaloneHost_TaskBody).Res.Returnval); err != nil {
			return fmt.Errorf("host %s: %w", name, err)
		}
	}
	for _, one := range config.Datastores {
		if err := l.makeDatastore(center, one); err != nil {
			return fmt.Errorf("datastore %s: %w", one.Name, err)
		}
	}
	for _, name := range config.Folders {
		l.folderOf(config.Name, name)
	}
	return nil
}

func resultOf(task types.ManagedObjectReference) error {
	info := simulator.Map.Get(task).(*simulator.Task).Info
	if info.Error != nil {
		return fmt.Errorf("%T", info.Error.Fault)
	}
	return nil
}

func makePool(parent types.ManagedObjectReference, name string) types.ManagedObjectReference {
	pool := simulator.Map.Get(parent).(*simulator.ResourcePool)
	if found := simulator.Map.FindByName(name, pool.ResourcePool.ResourcePool); found != nil {
		return found.Reference()
	}
	made := pool.CreateResourcePool(&types.CreateResourcePool{
		This: parent, Name: name, Spec: types.DefaultResourceConfigSpec()})
	return made.(*vim.CreateResourcePoolBody).Res.Returnval
}

func (l *Lab) makeDatastore(center *simulator.Datacenter, config DatastoreConfig) error {
	folder := filepath.Join(l.folder, "datastores", center.Name, config.Name)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	store := &simulator.Datastore{}
	number := len(l.datastores) + 11
	store.Self = types.ManagedObjectReference{Type: "Datastore", Value: fmt.Sprintf("datastore-%d", number)}
	store.Name = config.Name
	store.Info = datastoreInfo(config, folder)
	free := *config.FreeBytes
	if changed, ok := l.facts.Free[center.Name+"/"+config.Name]; ok {
		free = changed
	}
	store.Summary = types.DatastoreSummary{
		Datastore: &store.Self, Name: config.Name, Url: folder, Capacity: config.CapacityBytes, FreeSpace: free,
		Accessible: true, MultipleHostAccess: types.NewBool(true), Type: config.Type, MaintenanceMode: "normal",
	}
	store.Capability = types.DatastoreCapability{
		DirectoryHierarchySupported: true, PerFileThinProvisioningSupported: true,
		RawDiskMappingsSupported: config.Type == "VMFS", SeSparseSupported: types.NewBool(true),
	}
	browser := &simulator.HostDatastoreBrowser{}
	browser.Datastore = []types.ManagedObjectReference{store.Self}
	store.Browser = simulator.Map.Put(browser).Reference()
	parent := simulator.Map.Get(center.DatastoreFolder).(*simulator.Folder)
	parent.ChildEntity = append(parent.ChildEntity, store.Self)
	center.Datastore = append(center.Datastore, store.Self)
	for _, host := range hostsOf(center) {
		if len(config.Hosts) > 0 && !contains(config.Hosts, host.Name) {
			continue
		}
		store.Host = append(store.Host, types.DatastoreHostMount{Key: host.Self, MountInfo: types.HostMountInfo{
			AccessMode: "readWrite", Mounted: types.NewBool(true), Accessible: types.NewBool(true)}})
		host.Datastore = append(host.Datastore, store.Self)
		if compute := computeOf(host); compute != nil {
			simulator.Map.AddReference(compute, &compute.Datastore, store.Self)
		}
	}
	simulator.Map.PutEntity(parent, store)
	l.datastores = append(l.datastores, &Datastore{
		Datacenter: center.Name, Name: config.Name, Type: config.Type, Folder: folder, Ref: store.Self,
		Browser: store.Browser})
	return nil
}

func datastoreInfo(config DatastoreConfig, folder string) types.BaseDatastoreInfo {
	// The simulator's own browser reads the folder that the URL names.
	base := types.DatastoreInfo{Name: config.Name, Url: folder, FreeSpace: *config.FreeBytes, MaxFileSize: 64 << 40}
	switch config.Type {
	case "NFS", "NFS41":
		return &types.NasDatastoreInfo{DatastoreInfo: base, Nas: &types.HostNasVolume{
			HostFileSystemVolume: types.HostFileSystemVolume{Type: config.Type, Name: config.Name,
				Capacity: config.CapacityBytes}, RemoteHost: "nas.lab", RemotePath: "/" + config.Name}}
	case "vsan":
		return &types.VsanDatastoreInfo{DatastoreInfo: base, MembershipUuid: uuidFor("vsan", config.Name)}
	case "VVOL":
		return &types.VvolDatastoreInfo{DatastoreInfo: base}
	}
	return &types.VmfsDatastoreInfo{DatastoreInfo: base, Vmfs: &types.HostVmfsVolume{
		HostFileSystemVolume: types.HostFileSystemVolume{Type: "VMFS", Name: config.Name, Capacity: config.CapacityBytes},
		BlockSizeMb:          1, MajorVersion: 6, Version: "6.81", Uuid: uuidFor("vmfs", config.Name)}}
}

// hostsOf lists the hosts of a datacenter in the order they were made.
func hostsOf(center *simulator.Datacenter) []*simulator.HostSystem {
	var found []*simulator.HostSystem
	for _, ref := range simulator.Map.Get(center.HostFolder).(*simulator.Folder).ChildEntity {
		if compute := computeBy(ref); compute != nil {
			for _, host := range compute.Host {
				found = append(found, simulator.Map.Get(host).(*simulator.HostSystem))
			}
		}
	}
	return found
}

func computeBy(ref types.ManagedObjectReference) *mo.ComputeResource {
	switch compute := simulator.Map.Get(ref).(type) {
	case *mo.ComputeResource:
		return compute
	case *simulator.ClusterComputeResource:
		return &compute.ComputeResource
	}
	return nil
}

func computeOf(host *simulator.HostSystem) *mo.ComputeResource { return computeBy(*host.Parent) }

func (l *Lab) datacenter(name string) *simulator.Datacenter {
	for _, one := range simulator.Map.All("Datacenter") {
		if one.Entity().Name == name {
			return one.(*simulator.Datacenter)
		}
	}
	return nil
}

// datacenterOf names the datacenter an inventory object lies in, "" for the root.
func datacenterOf(ref types.ManagedObjectReference) string {
	for {
		entity, ok := simulator.Map.Get(ref).(mo.Entity)
		if !ok {
			return ""
		}
		if ref.Type == "Datacenter" {
			return entity.Entity().Name
		}
		if entity.Entity().Parent == nil {
			return ""
		}
		ref = *entity.Entity().Parent
	}
}

// folderOf finds or makes a folder of machines by its path under the datacenter's.
func (l *Lab) folderOf(center, path string) types.ManagedObjectReference {
	at := l.datacenter(center).VmFolder
	for _, name := range strings.FieldsFunc(path, func(c rune) bool { return c == '/' }) {
		folder := simulator.Map.Get(at).(*simulator.Folder)
		if found := simulator.Map.FindByName(name, folder.ChildEntity); found != nil && found.Reference().Type == "Folder" {
			at = found.Reference()
			continue
		}
		var made soap.HasFault
		simulator.Map.WithLock(folder, func() {
			own := *inner
			self := folder.Self
			own.Caller = &self
			made = folder.CreateFolder(&own, &types.CreateFolder{This: at, Name: name})
		})
		at = made.(*vim.CreateFolderBody).Res.Returnval
	}
	return at
}

// pathOf is the opposite of folderOf.
func pathOf(folder types.ManagedObjectReference) string {
	var names []string
	for {
		one, ok := simulator.Map.Get(folder).(*simulator.Folder)
		if !ok || one.Parent == nil || one.Parent.Type != "Folder" {
			break
		}
		names = append([]string{one.Name}, names...)
		folder = *one.Parent
	}
	return strings.Join(names, "/")
}

func (l *Lab) hostNamed(center, name string) *simulator.HostSystem {
	hosts := hostsOf(l.datacenter(center))
	for _, host := range hosts {
		if host.Name == name || host.Self.Value == name {
			return host
		}
	}
	return nil
}

// store finds a datastore by name within a datacenter; nil if there is none.
func (l *Lab) store(center, name string) *Datastore {
	for _, one := range l.datastores {
		if one.Datacenter == center && one.Name == name {
			return one
		}
	}
	return nil
}

// browsed is the datastore that a browser looks into, if it has the name asked for.
func (l *Lab) browsed(browser types.ManagedObjectReference, name string) *Datastore {
	for _, one := range l.datastores {
		if one.Browser == browser && one.Name == name {
			return one
		}
	}
	return nil
}

func (l *Lab) storeBy(ref types.ManagedObjectReference) *Datastore {
	for _, one := range l.datastores {
		if one.Ref == ref {
			return one
		}
	}
	return nil
}

func contains(list []string, name string) bool {
	for _, one := range list {
		if one == name {
			return true
		}
	}
	return false
}
