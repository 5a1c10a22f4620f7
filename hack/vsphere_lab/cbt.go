package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Tracking knows for each block of a live disk in which epoch it was last written: 0 never, 1 before tracking began.
// An epoch ends with a snapshot. The numbers lie in a file that is mapped, so a crash loses none.
type Tracking struct {
	Uuid  string `json:"uuid"` // "" until tracking takes effect
	Epoch uint32 `json:"epoch"`

	file   []byte
	epochs []uint32
	size   int64
}

func (t *Tracking) changeId(epoch uint32) string {
	return strings.ReplaceAll(spacedUuid(t.Uuid), "-", " ") + "/" + fmt.Sprint(epoch)
}

func (l *Lab) trackingPath(m *Machine, key int32) string {
	return filepath.Join(l.folder, "state", "tracking", m.Moref, fmt.Sprintf("%d.epochs", key))
}

func (l *Lab) frozenPath(m *Machine, snapshot string, key int32) string {
	return filepath.Join(l.folder, "state", "tracking", m.Moref, fmt.Sprintf("%s.%d.epochs", snapshot, key))
}

// open maps the file of epochs, whose size follows the disk's.
func (t *Tracking) open(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	t.close()
	if info.Size() == 0 {
		return nil
	}
	t.file, err = syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	t.epochs = unsafe.Slice((*uint32)(unsafe.Pointer(&t.file[0])), len(t.file)/4)
	return nil
}

func (t *Tracking) close() {
	if t.file != nil {
		_ = syscall.Munmap(t.file)
	}
	t.file, t.epochs = nil, nil
}

// wrote stamps the blocks of a guest's write.
func (t *Tracking) wrote(at, length int64) {
	if length == 0 {
		return
	}
	for n := at / block; n <= (at+length-1)/block && n < int64(len(t.epochs)); n++ {
		t.epochs[n] = t.Epoch
	}
}

// track begins to note a disk's writes; what it holds already counts as written in the first epoch.
func (l *Lab) track(m *Machine, disk *types.VirtualDisk, y *Layer) error {
	if old := m.Disks[disk.Key]; old != nil {
		old.close()
	}
	path := l.trackingPath(m, disk.Key)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := makeSparse(path, blocks(y.Capacity)*4); err != nil {
		return err
	}
	t := &Tracking{Epoch: 1}
	if err := t.open(path); err != nil {
		return err
	}
	m.Disks[disk.Key] = t
	return l.stampAll(m, t, y)
}

// retrack gives each disk its tracking where that is missing, and takes away what belongs to no disk: after a
// reconfiguration that failed, and after a kill between the record and the files.
func (l *Lab) retrack(m *Machine) error {
	there := map[int32]bool{}
	for _, disk := range disksOf(m.Config) {
		b := backingOf(disk)
		if b == nil {
			continue
		}
		there[disk.Key] = true
		if t := m.Disks[disk.Key]; t != nil && (t.file != nil || disk.CapacityInBytes == 0) {
			continue
		}
		y, err := l.layer(m.Center, *b.FileName)
		if err == nil {
			err = l.track(m, disk, y)
		}
		if err != nil {
			return err
		}
	}
	for key, one := range m.Disks {
		if !there[key] {
			one.close()
			delete(m.Disks, key)
		}
	}
	return nil
}

// stampAll counts what a disk holds as written in the current epoch.
func (l *Lab) stampAll(m *Machine, t *Tracking, y *Layer) error {
	layers, err := l.chain(m.Center, y.Path)
	if err != nil {
		return err
	}
	reader, err := openReader(layers)
	if err != nil {
		return err
	}
	defer reader.Close()
	return reader.Allocated(func(at, length int64) error {
		t.wrote(at, length)
		return nil
	})
}

// begin makes tracking take effect, as the stun of a snapshot does; begun tracking goes on.
func (t *Tracking) begin() {
	if t.Uuid == "" {
		t.Uuid = "52" + uuidFor("tracking", fmt.Sprint(os.Getpid()), fmt.Sprint(time.Now().UnixNano()))[2:]
		t.restart()
	}
}

// restart forgets when blocks were written, not that they were.
func (t *Tracking) restart() {
	for n := range t.epochs {
		if t.epochs[n] > 1 {
			t.epochs[n] = 1
		}
	}
	t.Epoch = 1
}

// freeze keeps the epochs of the moment for a snapshot.
func (l *Lab) freeze(m *Machine, snapshot string, key int32) error {
	src, err := os.Open(l.trackingPath(m, key))
	if err != nil {
		return err
	}
	defer src.Close()
	path := l.frozenPath(m, snapshot, key)
	if err := makeSparse(path, int64(len(m.Disks[key].file))); err != nil {
		return err
	}
	return (&Layer{Kind: "VMFS", Extent: path, Capacity: int64(len(m.Disks[key].file))}).copyFrom(src.Name())
}

func init() { methods["QueryChangedDiskAreas"] = queryChangedDiskAreas }

func fileFault(file, message string, args ...interface{}) *soap.Fault {
	return faultOf(&types.FileFault{File: file}, message, args...)
}

func queryChangedDiskAreas(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.QueryChangedDiskAreas)
	m := c.lab.machine(req.This)
	if m == nil {
		return nil, notFound(req.This)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	config, epochs := m.Config, []uint32(nil)
	if req.Snapshot == nil && m.Current != "" {
		current := m.snapshot(m.Current).ref()
		req.Snapshot = &current // without one named it is the current
	}
	if req.Snapshot == nil && m.Power != "poweredOff" {
		return nil, fileFault(m.Config.Files.VmPathName, "Error caused by file %s: it is running without a snapshot",
			m.Config.Files.VmPathName)
	}
	if req.Snapshot != nil {
		one := m.snapshot(req.Snapshot.Value)
		if one == nil {
			return nil, notFound(*req.Snapshot)
		}
		config = one.Config
	}
	var disk *types.VirtualDisk
	for _, one := range disksOf(config) {
		if one.Key == req.DeviceKey {
			disk = one
		}
	}
	if disk == nil {
		return nil, faultOf(&types.InvalidArgument{InvalidProperty: "deviceKey"}, "A specified parameter was not correct: deviceKey")
	}
	b := backingOf(disk)
	if req.StartOffset < 0 || req.StartOffset >= disk.CapacityInBytes {
		return nil, faultOf(&types.InvalidArgument{InvalidProperty: "startOffset"}, "A specified parameter was not correct: startOffset")
	}
	t := m.Disks[disk.Key]
	if *b.ChangeId == "" {
		return nil, fileFault(*b.FileName, "Error caused by file %s: change tracking was not in effect", *b.FileName)
	}
	since, err := t.since(req.ChangeId, *b.ChangeId)
	if err != "" {
		return nil, fileFault(*b.FileName, "Error caused by file %s: %s", *b.FileName, err)
	}
	if t != nil {
		epochs = t.epochs
	}
	if req.Snapshot != nil {
		frozen := &Tracking{}
		if err := frozen.open(c.lab.frozenPath(m, req.Snapshot.Value, disk.Key)); err != nil {
			return nil, fileFault(*b.FileName, "Error caused by file %s: %s", *b.FileName, err)
		}
		defer frozen.close()
		epochs = frozen.epochs
	}
	info := areas(epochs, since, req.StartOffset, disk.CapacityInBytes, c.lab.mode())
	return &types.QueryChangedDiskAreasResponse{Returnval: info}, nil
}

// since is the epoch whose later blocks are asked for; -1 for "*", all ever written. The second result says what is wrong.
func (t *Tracking) since(asked, own string) (int64, string) {
	if asked == "*" {
		return -1, ""
	}
	id, epoch, ok := strings.Cut(asked, "/")
	ownId, ownEpoch, _ := strings.Cut(own, "/")
	n, err := strconv.ParseUint(epoch, 10, 32)
	most, _ := strconv.ParseUint(ownEpoch, 10, 32)
	switch {
	case !ok || err != nil || n == 0:
		return 0, fmt.Sprintf("%q is no change id", asked)
	case id != ownId:
		return 0, fmt.Sprintf("the change id %q is of another disk or of an earlier tracking", asked)
	case n > most:
		return 0, fmt.Sprintf("the change id %q lies ahead", asked)
	}
	return int64(n), ""
}

// areas answers one query: at most the wanted number of areas, and how far the answer goes.
func areas(epochs []uint32, since, start, capacity int64, modes Modes) types.DiskChangeInfo {
	info := types.DiskChangeInfo{StartOffset: start, Length: capacity - start}
	if since < 0 && modes.StarIsWholeDisk {
		info.ChangedArea = []types.DiskChangeExtent{{Start: start, Length: capacity - start}}
		return info
	}
	nth := 0
	changed := func(n int64) bool {
		if since < 0 {
			if epochs[n] == 0 {
				return false
			}
			nth++
			return !modes.WrongStar || nth%3 != 0
		}
		return int64(epochs[n]) > since || modes.SpuriousAreas && n%7 == 3
	}
	marks := make([]bool, len(epochs))
	for n := range epochs {
		marks[n] = changed(int64(n))
	}
	most := modes.AreasPerAnswer
	for n := start / block; n < int64(len(marks)); n++ {
		if !marks[n] {
			continue
		}
		if most > 0 && len(info.ChangedArea) == most {
			last := info.ChangedArea[most-1]
			info.Length = last.Start + last.Length - start
			return info
		}
		first := n
		for n+1 < int64(len(marks)) && marks[n+1] {
			n++
		}
		at, end := first*block, min64((n+1)*block, capacity)
		if at < start {
			at = start
		}
		info.ChangedArea = append(info.ChangedArea, types.DiskChangeExtent{Start: at, Length: end - at})
	}
	return info
}
