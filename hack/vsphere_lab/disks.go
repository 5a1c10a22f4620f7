package main

import (
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/object"
)

// Files of disks, as on a datastore. A descriptor names an extent and, for a delta, its parent; it is the only truth
// about a disk file, so an uploaded or moved one works like one made here. Kinds of extents:
//
//	VMFS                    flat: the content itself, sparse; on vSAN and VVOL "vsan://UUID", a file in objects/
//	VMFSSPARSE, SESPARSE    content at its own offset, then one byte for each block: 1 = the block is here
//	VMFSRDM                 the text of the mapping file is the path of the LUN's content
const (
	block    = int64(64 << 10) // copy-up unit of deltas and granularity of change tracking
	sector   = int64(512)
	seekData = 3
	seekHole = 4
)

// Layer is one disk file: a base, or a delta on its parent.
type Layer struct {
	Center     string // datacenter, by name
	Path       string // "[ds] dir/disk.vmdk"
	Descriptor string // local path
	Extent     string // local path
	ExtentName string // as the descriptor says
	Kind       string
	Capacity   int64 // bytes
	Uuid       string
	Parent     string // datastore path, "" for a base
	Thin       bool
	CreateType string
	Device     string // of a raw device mapping: local path of the LUN's content
	Lun        string
}

func (y *Layer) mapped() bool { return y.Kind == "VMFSSPARSE" || y.Kind == "SESPARSE" }
func (y *Layer) raw() bool    { return y.Kind == "VMFSRDM" || y.Kind == "VMFSRDMP" }

// data is the local file that holds the layer's content.
func (y *Layer) data() string {
	if y.raw() {
		return y.Device
	}
	return y.Extent
}

func blocks(size int64) int64 { return (size + block - 1) / block }

// splitPath takes "[ds] dir/file" apart.
func splitPath(text string) (store, file string, err error) {
	var p object.DatastorePath
	if !p.FromString(text) {
		return "", "", fmt.Errorf("%q is no datastore path", text)
	}
	return p.Datastore, p.Path, nil
}

func joinPath(store, file string) string {
	if file == "" {
		return "[" + store + "]"
	}
	return "[" + store + "] " + file
}

// local gives the file of this machine behind a datastore path. ".." stays inside.
func (l *Lab) local(center, text string) (string, *Datastore, error) {
	name, file, err := splitPath(text)
	if err != nil {
		return "", nil, err
	}
	store := l.store(center, name)
	if store == nil {
		return "", nil, fmt.Errorf("no datastore %q in %s", name, center)
	}
	return filepath.Join(store.Folder, path.Clean("/"+file)), store, nil
}

// layer reads one descriptor.
func (l *Lab) layer(center, text string) (*Layer, error) {
	file, store, err := l.local(center, text)
	if err != nil {
		return nil, err
	}
	content, err := readHead(file, 64<<10)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(content, "# Disk DescriptorFile") {
		return nil, fmt.Errorf("%s is no disk descriptor", text)
	}
	y := &Layer{Center: center, Path: text, Descriptor: file}
	_, inside, _ := splitPath(text)
	for _, line := range strings.Split(content, "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "RW ") || strings.HasPrefix(line, "RDONLY ") {
			if y.Extent != "" {
				return nil, fmt.Errorf("%s has more than one extent", text)
			}
			if err := y.readExtent(l, store, inside, line); err != nil {
				return nil, err
			}
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		value = strings.Trim(strings.TrimSpace(value), `"`)
		if !ok {
			continue
		}
		switch strings.TrimSpace(key) {
		case "createType":
			y.CreateType = value
		case "parentFileNameHint":
			y.Parent = parentPath(store.Name, inside, value)
		case "ddb.uuid":
			y.Uuid = plainUuid(value)
		case "ddb.thinProvisioned":
			y.Thin = value == "1"
		case "ddb.nativeLun":
			y.Lun = value
		}
	}
	if y.Extent == "" {
		return nil, fmt.Errorf("%s names no extent", text)
	}
	return y, nil
}

func (y *Layer) readExtent(l *Lab, store *Datastore, inside, line string) error {
	fields := strings.SplitN(line, " ", 4)
	if len(fields) < 4 {
		return fmt.Errorf("%s: %q is no extent", y.Path, line)
	}
	sectors, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return fmt.Errorf("%s: %q is no extent", y.Path, line)
	}
	y.Capacity, y.Kind = sectors*sector, fields[2]
	_, name, _ := strings.Cut(fields[3], `"`)
	name, _, _ = strings.Cut(name, `"`)
	y.ExtentName = name
	if _, id, ok := strings.Cut(name, "://"); ok {
		y.Extent = filepath.Join(l.folder, "objects", filepath.Base(id))
		return nil
	}
	y.Extent = filepath.Join(store.Folder, path.Clean("/"+path.Join(path.Dir(inside), name)))
	if y.raw() {
		device, err := readHead(y.Extent, 4096)
		if err != nil {
			return err
		}
		y.Device = strings.TrimSpace(device)
	}
	return nil
}

func parentPath(store, inside, hint string) string {
	if rest := strings.TrimPrefix(hint, "/vmfs/volumes/"); rest != hint {
		name, file, _ := strings.Cut(rest, "/")
		return joinPath(name, file)
	}
	return joinPath(store, path.Join(path.Dir(inside), hint))
}

func readHead(file string, most int64) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head, err := io.ReadAll(io.LimitReader(f, most))
	return string(head), err
}

// chain lists the layers of a disk, the given one first, the base last.
func (l *Lab) chain(center, text string) ([]*Layer, error) {
	var found []*Layer
	for text != "" {
		y, err := l.layer(center, text)
		if err != nil {
			return nil, err
		}
		found = append(found, y)
		if text = y.Parent; len(found) > 64 {
			return nil, fmt.Errorf("the parents of %s go round in a circle", found[0].Path)
		}
	}
	return found, nil
}

// write puts the descriptor on disk.
func (y *Layer) write() error {
	parent, kind := "ffffffff", y.CreateType
	hint := ""
	if y.Parent != "" {
		store, file, err := splitPath(y.Parent)
		if err != nil {
			return err
		}
		ownStore, own, _ := splitPath(y.Path)
		name := path.Base(file)
		if store != ownStore || path.Dir(file) != path.Dir(own) {
			name = "/vmfs/volumes/" + store + "/" + file
		}
		parent, hint = "fffffffe", fmt.Sprintf("parentFileNameHint=\"%s\"\n", name)
	}
	text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=fffffffe\nparentCID=%s\n"+
		"createType=\"%s\"\n%s\n# Extent description\nRW %d %s \"%s\"\n\n# The Disk Data Base\n#DDB\n\n"+
		"ddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"%d\"\nddb.geometry.heads = \"255\"\n"+
		"ddb.geometry.sectors = \"63\"\nddb.uuid = \"%s\"\nddb.virtualHWVersion = \"14\"\n",
		parent, kind, hint, y.Capacity/sector, y.Kind, y.ExtentName, y.Capacity/sector/255/63, spacedUuid(y.Uuid))
	if y.Thin {
		text += "ddb.thinProvisioned = \"1\"\n"
	}
	if y.Lun != "" {
		text += fmt.Sprintf("ddb.nativeLun = \"%s\"\n", y.Lun)
	}
	return writeFile(y.Descriptor, []byte(text))
}

// spacedUuid is how descriptors write it: "60 00 C2 9a bc de f0 12-34 56 78 9a bc de f0 12".
func spacedUuid(uuid string) string {
	plain := strings.ReplaceAll(uuid, "-", "")
	if len(plain) != 32 {
		return uuid
	}
	var b strings.Builder
	for i := 0; i < 32; i += 2 {
		if i == 16 {
			b.WriteByte('-')
		} else if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(plain[i : i+2])
	}
	return b.String()
}

func plainUuid(text string) string {
	plain := strings.NewReplacer(" ", "", "-", "").Replace(text)
	if len(plain) != 32 {
		return text
	}
	return plain[0:8] + "-" + plain[8:12] + "-" + plain[12:16] + "-" + plain[16:20] + "-" + plain[20:]
}
