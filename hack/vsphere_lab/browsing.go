package main

import (
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// The datastore browser: what lies in a folder, by pattern and kind.

func searchDatastore(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.SearchDatastore_Task)
	task := c.start(c.method, c.lab.browsedStore(c.this), nil, func() (types.AnyType, types.BaseMethodFault) {
		found, fault := c.lab.browse(c.this, req.DatastorePath, req.SearchSpec, false)
		if fault != nil {
			return nil, fault
		}
		return found[0], nil
	})
	return &types.SearchDatastore_TaskResponse{Returnval: task}, nil
}

func searchSubFolders(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.SearchDatastoreSubFolders_Task)
	task := c.start(c.method, c.lab.browsedStore(c.this), nil, func() (types.AnyType, types.BaseMethodFault) {
		found, fault := c.lab.browse(c.this, req.DatastorePath, req.SearchSpec, true)
		if fault != nil {
			return nil, fault
		}
		return types.ArrayOfHostDatastoreBrowserSearchResults{HostDatastoreBrowserSearchResults: found}, nil
	})
	return &types.SearchDatastoreSubFolders_TaskResponse{Returnval: task}, nil
}

// browsedStore is the datastore of a browser, the entity of its tasks.
func (l *Lab) browsedStore(browser types.ManagedObjectReference) types.ManagedObjectReference {
	for _, one := range l.datastores {
		if one.Browser == browser {
			return one.Ref
		}
	}
	return vimContent().RootFolder
}

// browse lists a folder, and with deep all below it. The browser belongs to one datastore.
func (l *Lab) browse(browser types.ManagedObjectReference, text string, spec *types.HostDatastoreBrowserSearchSpec,
	deep bool) ([]types.HostDatastoreBrowserSearchResults, types.BaseMethodFault) {
	name, inside, err := splitPath(text)
	if err != nil {
		return nil, &types.InvalidDatastorePath{DatastorePath: text}
	}
	store := l.browsed(browser, name)
	if store == nil {
		return nil, &types.InvalidDatastore{Name: name}
	}
	if spec == nil {
		spec = &types.HostDatastoreBrowserSearchSpec{}
	}
	root := filepath.Join(store.Folder, path.Clean("/"+inside))
	if info, err := os.Stat(root); err != nil || !info.IsDir() {
		return nil, &types.FileNotFound{FileFault: types.FileFault{File: text}}
	}
	var found []types.HostDatastoreBrowserSearchResults
	err = filepath.WalkDir(root, func(folder string, entry os.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		if folder != root && !deep {
			return filepath.SkipDir
		}
		rest, _ := filepath.Rel(root, folder)
		one := types.HostDatastoreBrowserSearchResults{Datastore: &store.Ref,
			FolderPath: joinPath(name, strings.Trim(path.Join(inside, rest), "./"))}
		entries, err := os.ReadDir(folder)
		if err != nil {
			return err
		}
		sort.Slice(entries, func(i, j int) bool { return entries[i].Name() < entries[j].Name() })
		for _, file := range entries {
			if info := browsedFile(file, spec); info != nil {
				one.File = append(one.File, info)
			}
		}
		found = append(found, one)
		return nil
	})
	if err != nil {
		return nil, &types.FileFault{File: text}
	}
	return found, nil
}

func browsedFile(entry os.DirEntry, spec *types.HostDatastoreBrowserSearchSpec) types.BaseFileInfo {
	name := entry.Name()
	if strings.HasPrefix(name, ".") || !matches(name, spec.MatchPattern) {
		return nil
	}
	info, err := entry.Info()
	if err != nil {
		return nil // it went while the folder was read
	}
	kind := kindOf(name, entry.IsDir())
	if len(spec.Query) > 0 && !asked(kind, spec.Query) {
		return nil
	}
	base := types.FileInfo{Path: name}
	if spec.Details != nil && spec.Details.FileSize {
		base.FileSize = info.Size()
	}
	if spec.Details != nil && spec.Details.Modification {
		modified := info.ModTime()
		base.Modification = &modified
	}
	if entry.IsDir() {
		return &types.FolderFileInfo{FileInfo: base}
	}
	if len(spec.Query) == 0 && (spec.Details == nil || !spec.Details.FileType) {
		return &base
	}
	switch kind {
	case "config":
		return &types.VmConfigFileInfo{FileInfo: base}
	case "disk":
		return &types.VmDiskFileInfo{FileInfo: base}
	case "nvram":
		return &types.VmNvramFileInfo{FileInfo: base}
	case "snapshot":
		return &types.VmSnapshotFileInfo{FileInfo: base}
	case "log":
		return &types.VmLogFileInfo{FileInfo: base}
	}
	return &base
}

func matches(name string, patterns []string) bool {
	for _, one := range patterns {
		if ok, err := path.Match(one, name); err == nil && ok {
			return true
		}
	}
	return len(patterns) == 0
}

func kindOf(name string, folder bool) string {
	if folder {
		return "folder"
	}
	stem := strings.TrimSuffix(name, ".vmdk")
	if stem != name {
		for _, extent := range []string{"-flat", "-delta", "-sesparse", "-rdm", "-rdmp"} {
			if strings.HasSuffix(stem, extent) {
				return "extent"
			}
		}
		return "disk"
	}
	return map[string]string{".vmx": "config", ".nvram": "nvram", ".vmsn": "snapshot", ".log": "log"}[path.Ext(name)]
}

func asked(kind string, queries []types.BaseFileQuery) bool {
	for _, one := range queries {
		want := ""
		switch one.(type) {
		case *types.FolderFileQuery:
			want = "folder"
		case *types.VmDiskFileQuery:
			want = "disk"
		case *types.VmConfigFileQuery:
			want = "config"
		case *types.VmNvramFileQuery:
			want = "nvram"
		case *types.VmSnapshotFileQuery:
			want = "snapshot"
		case *types.VmLogFileQuery:
			want = "log"
		case *types.FileQuery:
			return true
		}
		if want == kind {
			return true
		}
	}
	return false
}
