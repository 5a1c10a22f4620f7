package main

import (
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// The managers of virtual disks and of files: the same files on the datastores, without a machine.

func init() {
	methods["CreateVirtualDisk_Task"] = createVirtualDisk
	methods["CopyVirtualDisk_Task"] = copyVirtualDisk
	methods["MoveVirtualDisk_Task"] = moveVirtualDisk
	methods["DeleteVirtualDisk_Task"] = deleteVirtualDisk
	methods["ExtendVirtualDisk_Task"] = extendVirtualDisk
	methods["QueryVirtualDiskUuid"] = queryVirtualDiskUuid
	methods["SetVirtualDiskUuid"] = setVirtualDiskUuid
	methods["MakeDirectory"] = makeDirectory
	methods["DeleteDatastoreFile_Task"] = deleteFile
	methods["MoveDatastoreFile_Task"] = moveFile
	methods["CopyDatastoreFile_Task"] = copyFile
}

// centerOf names the datacenter of a call; without one it is the only one there is.
func (l *Lab) centerOf(ref *types.ManagedObjectReference) string {
	if ref != nil {
		return datacenterOf(*ref)
	}
	if len(l.config.Datacenters) == 1 {
		return l.config.Datacenters[0].Name
	}
	return ""
}

// fileTask starts work on files; clients want an entity of the inventory in a task: it is the datacenter.
func (c *call) fileTask(center *types.ManagedObjectReference, do func() error) types.ManagedObjectReference {
	entity := vimContent().RootFolder
	if center != nil {
		entity = *center
	}
	return c.start(c.method, entity, nil, func() (types.AnyType, types.BaseMethodFault) {
		return nil, fileFaultOf(do())
	})
}

type inUse string

func (e inUse) Error() string { return string(e) }

func fileFaultOf(err error) types.BaseMethodFault {
	switch {
	case err == nil:
		return nil
	case os.IsNotExist(err):
		return &types.FileNotFound{FileFault: types.FileFault{File: err.Error()}}
	case os.IsExist(err):
		return &types.FileAlreadyExists{FileFault: types.FileFault{File: err.Error()}}
	}
	if _, ok := err.(inUse); ok {
		return &types.FileLocked{FileFault: types.FileFault{File: err.Error()}}
	}
	return &types.FileFault{File: err.Error()}
}

func createVirtualDisk(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.CreateVirtualDisk_Task)
	spec, ok := req.Spec.(types.BaseFileBackedVirtualDiskSpec)
	if !ok {
		return nil, faultOf(&types.InvalidArgument{InvalidProperty: "spec"}, "A specified parameter was not correct: spec")
	}
	one := spec.GetFileBackedVirtualDiskSpec()
	kind := "flat"
	if one.DiskType == "seSparse" {
		kind = "sparse"
	}
	task := c.fileTask(req.Datacenter, func() error {
		_, err := c.lab.makeDisk(NewDisk{Center: c.lab.centerOf(req.Datacenter), Path: req.Name, Kind: kind,
			Size: one.CapacityKb * 1024, Thin: one.DiskType == "thin"})
		return err
	})
	return &types.CreateVirtualDisk_TaskResponse{Returnval: task}, nil
}

func copyVirtualDisk(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.CopyVirtualDisk_Task)
	task := c.fileTask(req.SourceDatacenter, func() error {
		from := c.lab.centerOf(req.SourceDatacenter)
		to := from
		if req.DestDatacenter != nil {
			to = datacenterOf(*req.DestDatacenter)
		}
		thin := req.DestSpec == nil || req.DestSpec.GetVirtualDiskSpec().DiskType != "eagerZeroedThick"
		return c.lab.copyDisk(from, req.SourceName, to, req.DestName, thin, req.Force != nil && *req.Force)
	})
	return &types.CopyVirtualDisk_TaskResponse{Returnval: task}, nil
}

// copyDisk makes a flat copy of a disk with all its layers.
func (l *Lab) copyDisk(from, source, to, target string, thin, force bool) error {
	if l.holder(from, source) != "" {
		return inUse(source)
	}
	layers, err := l.chain(from, source)
	if err != nil {
		return err
	}
	if force {
		if old, err := l.layer(to, target); err == nil {
			_ = removeLayer(old)
		}
	}
	reader, err := openReader(layers)
	if err != nil {
		return err
	}
	defer reader.Close()
	made, err := l.makeDisk(NewDisk{Center: to, Path: target, Kind: "flat", Size: reader.Capacity, Thin: thin})
	if err != nil {
		return err
	}
	writer, err := openWriter([]*Layer{made})
	if err != nil {
		return err
	}
	defer writer.Close()
	return copyAllocated(reader, writer)
}

func copyAllocated(reader, writer *Chain) error {
	buffer := make([]byte, 16*block)
	return reader.Allocated(func(at, length int64) error {
		for length > 0 {
			n := min64(length, int64(len(buffer)))
			if _, err := reader.ReadAt(buffer[:n], at); err != nil {
				return err
			}
			if err := writer.WriteAt(buffer[:n], at); err != nil {
				return err
			}
			at, length = at+n, length-n
		}
		return nil
	})
}

func moveVirtualDisk(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.MoveVirtualDisk_Task)
	task := c.fileTask(req.SourceDatacenter, func() error {
		from := c.lab.centerOf(req.SourceDatacenter)
		to := from
		if req.DestDatacenter != nil {
			to = datacenterOf(*req.DestDatacenter)
		}
		force := req.Force != nil && *req.Force
		old, err := c.lab.layer(from, req.SourceName)
		if err != nil {
			return err
		}
		if err := c.lab.copyDisk(from, req.SourceName, to, req.DestName, old.Thin, force); err != nil {
			return err
		}
		made, err := c.lab.layer(to, req.DestName)
		if err != nil {
			return err
		}
		made.Uuid = old.Uuid
		if err := made.write(); err != nil {
			return err
		}
		return removeLayer(old)
	})
	return &types.MoveVirtualDisk_TaskResponse{Returnval: task}, nil
}

func deleteVirtualDisk(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.DeleteVirtualDisk_Task)
	task := c.fileTask(req.Datacenter, func() error {
		center := c.lab.centerOf(req.Datacenter)
		if c.lab.holder(center, req.Name) != "" {
			return inUse(req.Name)
		}
		old, err := c.lab.layer(center, req.Name)
		if err != nil {
			return err
		}
		return removeLayer(old)
	})
	return &types.DeleteVirtualDisk_TaskResponse{Returnval: task}, nil
}

func extendVirtualDisk(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.ExtendVirtualDisk_Task)
	task := c.fileTask(req.Datacenter, func() error {
		center := c.lab.centerOf(req.Datacenter)
		old, err := c.lab.layer(center, req.Name)
		if err != nil {
			return err
		}
		if c.lab.holder(center, req.Name) != "" || old.mapped() || req.NewCapacityKb*1024 < old.Capacity {
			return inUse(req.Name)
		}
		if err := os.Truncate(old.data(), req.NewCapacityKb*1024); err != nil {
			return err
		}
		old.Capacity = req.NewCapacityKb * 1024
		return old.write()
	})
	return &types.ExtendVirtualDisk_TaskResponse{Returnval: task}, nil
}

func queryVirtualDiskUuid(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.QueryVirtualDiskUuid)
	found, err := c.lab.layer(c.lab.centerOf(req.Datacenter), req.Name)
	if err != nil {
		return nil, faultOf(fileFaultOf(err), "%s", err)
	}
	return &types.QueryVirtualDiskUuidResponse{Returnval: spacedUuid(found.Uuid)}, nil
}

func setVirtualDiskUuid(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.SetVirtualDiskUuid)
	center := c.lab.centerOf(req.Datacenter)
	found, err := c.lab.layer(center, req.Name)
	if err == nil && c.lab.holder(center, req.Name) != "" {
		err = inUse(req.Name)
	}
	if err == nil {
		found.Uuid = plainUuid(req.Uuid)
		err = found.write()
	}
	if err != nil {
		return nil, faultOf(fileFaultOf(err), "%s", err)
	}
	c.lab.refresh(center, req.Name)
	return &types.SetVirtualDiskUuidResponse{}, nil
}

// refresh lets the machine that has a disk file see what changed in it.
func (l *Lab) refresh(center, file string) {
	for _, m := range l.all() {
		m.mu.Lock()
		for _, disk := range disksOf(m.Config) {
			if b := backingOf(disk); b != nil && m.Center == center && *b.FileName == file {
				if err := l.save(m); err != nil {
					l.note("%s: %s", m.Config.Name, err)
				}
				break
			}
		}
		m.mu.Unlock()
	}
}

func makeDirectory(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.MakeDirectory)
	folder, _, err := c.lab.local(c.lab.centerOf(req.Datacenter), req.Name)
	if err != nil {
		return nil, faultOf(&types.InvalidDatastorePath{DatastorePath: req.Name}, "%s", err)
	}
	if req.CreateParentDirectories != nil && *req.CreateParentDirectories {
		if err = os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
			return nil, faultOf(fileFaultOf(err), "%s", err)
		}
	}
	if err := os.Mkdir(folder, 0o755); err != nil {
		return nil, faultOf(fileFaultOf(err), "Cannot complete the operation because the file or folder %s: %s", req.Name, err)
	}
	return &types.MakeDirectoryResponse{}, nil
}

// deleteFile removes a file or a folder with all in it; a disk's descriptor takes its extent along.
func deleteFile(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.DeleteDatastoreFile_Task)
	task := c.fileTask(req.Datacenter, func() error {
		center := c.lab.centerOf(req.Datacenter)
		file, _, err := c.lab.local(center, req.Name)
		if err != nil {
			return err
		}
		if _, err := os.Stat(file); err != nil {
			return err
		}
		if holder := c.lab.lockedBelow(center, req.Name); holder != "" {
			return inUse(req.Name + " of " + holder)
		}
		if old, err := c.lab.layer(center, req.Name); err == nil {
			return removeLayer(old)
		}
		return os.RemoveAll(file)
	})
	return &types.DeleteDatastoreFile_TaskResponse{Returnval: task}, nil
}

// lockedBelow names a running machine that has a file at a path or in the folder of that path.
func (l *Lab) lockedBelow(center, text string) string {
	if holder := l.locked(center, text, true); holder != "" {
		return holder
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for file, holder := range l.held {
		if strings.HasPrefix(file, center+" "+strings.TrimSuffix(text, "/")+"/") {
			return holder
		}
	}
	return ""
}

func moveFile(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.MoveDatastoreFile_Task)
	task := c.fileTask(req.SourceDatacenter, func() error {
		return c.transfer(req.SourceDatacenter, req.SourceName, req.DestinationDatacenter, req.DestinationName,
			req.Force, os.Rename)
	})
	return &types.MoveDatastoreFile_TaskResponse{Returnval: task}, nil
}

func copyFile(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.CopyDatastoreFile_Task)
	task := c.fileTask(req.SourceDatacenter, func() error {
		return c.transfer(req.SourceDatacenter, req.SourceName, req.DestinationDatacenter, req.DestinationName,
			req.Force, func(from, to string) error {
				info, err := os.Stat(from)
				if err != nil {
					return err
				}
				if err := makeSparse(to, info.Size()); err != nil {
					return err
				}
				return (&Layer{Kind: "VMFS", Extent: to, Capacity: info.Size()}).copyFrom(from)
			})
	})
	return &types.CopyDatastoreFile_TaskResponse{Returnval: task}, nil
}

func (c *call) transfer(fromRef *types.ManagedObjectReference, source string, toRef *types.ManagedObjectReference,
	target string, force *bool, do func(from, to string) error) error {
	center := c.lab.centerOf(fromRef)
	other := center
	if toRef != nil {
		other = datacenterOf(*toRef)
	}
	from, _, err := c.lab.local(center, source)
	if err != nil {
		return err
	}
	to, store, err := c.lab.local(other, target)
	if err != nil {
		return err
	}
	if store.objects() && strings.HasSuffix(to, "-flat.vmdk") {
		return inUse(target + ": the datastore holds disks as objects")
	}
	if _, err := os.Stat(from); err != nil {
		return err
	}
	if holder := c.lab.lockedBelow(center, source); holder != "" {
		return inUse(source + " of " + holder)
	}
	if _, err := os.Stat(to); err == nil && (force == nil || !*force) {
		return &os.PathError{Op: "create", Path: path.Base(target), Err: os.ErrExist}
	}
	return do(from, to)
}
