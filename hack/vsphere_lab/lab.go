package main

import (
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/vmware/govmomi/vim25/types"
)

// Lab is the whole peer. Lock order: a machine's operations (Machine.ops), then its facts (Machine.mu), then Lab.mu;
// no two machines' locks are held at once. The simulator's own objects are written last, whole values at a time.
type Lab struct {
	folder string
	config *Config

	mu         sync.Mutex
	machines   map[string]*Machine // by the value of the managed object reference
	datastores []*Datastore        // all datacenters'
	facts      Facts               // what of the lab itself outlives a crash
	modes      Modes
	faults     []*Fault
	sessions   map[string]*Session
	pages      map[string]*page
	counts     map[string]int
	events     []string
	nextFault  int
	next       int64             // number of the last reference
	held       map[string]string // disk file ("datacenter [ds] dir/x.vmdk") to the running machine that writes it
	leases     *leaseTable
}

// Facts are the lab's own part of the state on disk.
type Facts struct {
	Boots int              `json:"boots"`
	Next  int64            `json:"next"` // numbers of references up to it may have been given
	Free  map[string]int64 `json:"free"` // bytes free, by "datacenter/datastore", where changed
}

// Modes change how the peer answers; see control.go.
type Modes struct {
	StarIsWholeDisk     bool     `json:"starIsWholeDisk"`
	SpuriousAreas       bool     `json:"spuriousAreas"`
	WrongStar           bool     `json:"wrongStar"`
	TaskMillis          int      `json:"taskMillis"`
	AreasPerAnswer      int      `json:"areasPerAnswer"`
	SessionSeconds      int      `json:"sessionSeconds"`
	DiskBytesPerSecond  int64    `json:"diskBytesPerSecond"`
	MaxObjects          int32    `json:"maxObjects"`
	AnonymousReads      bool     `json:"anonymousReads"`
	RevertKeepsTracking bool     `json:"revertKeepsTracking"`
	DeniedPrivileges    []string `json:"deniedPrivileges"`
	LeaseSeconds        int      `json:"leaseSeconds"`
	// LeaseHost stands in the URLs of leases in the place of "*", as a vCenter names its hosts; with the peer's port.
	LeaseHost  string   `json:"leaseHost"`
	Hidden     []string `json:"hidden"`     // names of what the user may not see
	TagService string   `json:"tagService"` // "older": only the form under /rest; "none"; else both forms
}

func openLab(folder string) (*Lab, error) {
	config, err := readConfig(filepath.Join(folder, "config.json"))
	if err != nil {
		return nil, err
	}
	l := &Lab{
		folder: folder, config: config, machines: map[string]*Machine{}, sessions: map[string]*Session{},
		pages: map[string]*page{}, held: map[string]string{}, counts: map[string]int{}, leases: newLeaseTable(),
		modes: Modes{TaskMillis: config.TaskMillis, AreasPerAnswer: config.AreasPerAnswer},
		facts: Facts{Next: 1000, Free: map[string]int64{}},
	}
	for _, one := range []string{"datastores", "objects", "state/machines", "state/tracking"} {
		if err := os.MkdirAll(filepath.Join(folder, one), 0o755); err != nil {
			return nil, err
		}
	}
	first := true
	if text, err := os.ReadFile(l.factsPath()); err == nil {
		first = false
		if err := json.Unmarshal(text, &l.facts); err != nil {
			return nil, err
		}
	}
	l.facts.Boots++
	l.next = l.facts.Next
	if err := l.makeInventory(); err != nil {
		return nil, err
	}
	if first {
		err = l.makeMachines()
	} else {
		err = l.loadMachines()
	}
	if err != nil {
		return nil, err
	}
	return l, l.saveFacts()
}

func (l *Lab) factsPath() string { return filepath.Join(l.folder, "state", "lab.json") }

// saveFacts writes the lab's own facts; the caller holds l.mu or is alone.
func (l *Lab) saveFacts() error { return writeJSON(l.factsPath(), &l.facts) }

// reference gives a number that no object ever had, not before a crash either.
func (l *Lab) reference(kind, prefix string) types.ManagedObjectReference {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	if l.next > l.facts.Next {
		// Numbers are taken from the disk in lots; what is left of a lot is lost in a crash, never given twice.
		l.facts.Next += 100
		if err := l.saveFacts(); err != nil {
			panic(err)
		}
	}
	return types.ManagedObjectReference{Type: kind, Value: fmt.Sprintf("%s-%d", prefix, l.next)}
}

func (l *Lab) mode() Modes {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.modes
}

// note keeps a line for /lab/state; the last 2000 are kept.
func (l *Lab) note(format string, args ...interface{}) {
	line := time.Now().UTC().Format("15:04:05.000 ") + fmt.Sprintf(format, args...)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, line)
	if len(l.events) > 2000 {
		l.events = l.events[len(l.events)-2000:]
	}
}

func (l *Lab) count(call string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[call]++
}

// machine finds one by its reference, nil if there is none.
func (l *Lab) machine(ref types.ManagedObjectReference) *Machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.machines[ref.Value]
}

// all machines, in the order of their making.
func (l *Lab) all() []*Machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := make([]*Machine, 0, len(l.machines))
	for _, one := range l.machines {
		found = append(found, one)
	}
	sort.Slice(found, func(i, j int) bool { return number(found[i].Moref) < number(found[j].Moref) })
	return found
}

// named finds a machine for the control interface: by name or by reference.
func (l *Lab) named(name string) *Machine {
	for _, one := range l.all() {
		if one.Moref == name || one.name() == name {
			return one
		}
	}
	return nil
}

func number(moref string) int {
	n := 0
	_, _ = fmt.Sscanf(moref[strings.LastIndex(moref, "-")+1:], "%d", &n)
	return n
}

// uuidFor derives a UUID from words, so that a lab built twice has the same ones.
func uuidFor(words ...string) string {
	sum := sha1.Sum([]byte(strings.Join(words, "\x00")))
	sum[6], sum[8] = sum[6]&0x0f|0x50, sum[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// writeJSON replaces a file at once: a crash leaves the old or the new one.
func writeJSON(path string, value interface{}) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return writeFile(path, text)
}

// writeFile puts a file in the place of another at once. Swapping the two names and removing the old file spares the
// flush to disk that some file systems do when one is renamed over another: this must survive a kill, not a power cut.
func writeFile(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	if exchange(path+".new", path) {
		return os.Remove(path + ".new")
	}
	return os.Rename(path+".new", path)
}

// exchange swaps two names, where the system can and both exist.
func exchange(one, other string) bool {
	const renameat2, swap, here = 316, 2, -100
	if runtime.GOARCH != "amd64" {
		return false
	}
	from, err := syscall.BytePtrFromString(one)
	if err != nil {
		return false
	}
	to, err := syscall.BytePtrFromString(other)
	if err != nil {
		return false
	}
	folder := here
	_, _, errno := syscall.Syscall6(renameat2, uintptr(folder), uintptr(unsafe.Pointer(from)), uintptr(folder),
		uintptr(unsafe.Pointer(to)), swap, 0)
	return errno == 0
}

// hold notes which disk files a running machine keeps others from; the caller holds m.mu.
func (l *Lab) hold(m *Machine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for file, holder := range l.held {
		if holder == m.Moref {
			delete(l.held, file)
		}
	}
	if m.Power != "poweredOn" || m.gone {
		return
	}
	for _, disk := range disksOf(m.Config) {
		if b := backingOf(disk); b != nil && *b.Sharing != "sharingMultiWriter" {
			l.held[m.Center+" "+*b.FileName] = m.Moref
		}
	}
}

func (l *Lab) holder(center, file string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[center+" "+file]
}
