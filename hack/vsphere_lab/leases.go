package main

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Leases: the whole disks of a machine (or of one of its snapshots) as files to fetch, or of a new machine as files to
// send, under /nfc/TICKET/NAME. The ticket in the URL is all the authentication there is, as on a host. A lease that is
// not told of progress in time ends by itself; an import that does not complete takes its machine with it.

const leaseSeconds = 300

// Lease is one lease, alive or ended.
type Lease struct {
	lab     *Lab
	kind    string // ExportVm, ExportSnapshot, ImportVApp
	machine *Machine
	// snapshot is the reference of the exported one, "" else.
	snapshot string
	ticket   string
	files    []*leaseFile

	mutex sync.Mutex
	self  types.ManagedObjectReference
	state types.HttpNfcLeaseState
	until time.Time
	ended chan struct{}
}

// leaseFile is one file of a lease.
type leaseFile struct {
	name, key string
	disk      bool
	layers    []*Layer // of a disk
	path      string   // of any other file
	deviceKey int32

	mutex    sync.Mutex
	busy     bool
	sent     bool
	received bool
	size     int64
	sum      string
}

func (f *leaseFile) capacity() int64 {
	if f.disk {
		return f.layers[0].Capacity
	}
	return 0
}

// leases by the value of their reference; the simulator's registry holds what clients read of them.
type leaseTable struct {
	mutex sync.Mutex
	all   map[string]*Lease
}

func newLeaseTable() *leaseTable { return &leaseTable{all: map[string]*Lease{}} }

func init() {
	paths["/nfc/"] = (*Lab).serveNfc
	guards = append(guards, leaseGuard)
	leaseMachine = func(l *Lab, r *http.Request) string {
		if lease, _ := l.leaseOfPath(r); lease != nil {
			return lease.machine.name()
		}
		return ""
	}
	stateParts["leases"] = func(l *Lab) interface{} {
		states := []map[string]string{}
		l.leases.each(func(e *Lease) {
			e.mutex.Lock()
			defer e.mutex.Unlock()
			states = append(states, map[string]string{
				"moref": e.self.Value, "state": string(e.state), "kind": e.kind, "machine": e.machine.Moref, "snapshot": e.snapshot,
			})
		})
		return states
	}
}

func (t *leaseTable) each(do func(*Lease)) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for _, one := range t.all {
		do(one)
	}
}

func (t *leaseTable) find(match func(*Lease) bool) *Lease {
	var found *Lease
	t.each(func(e *Lease) {
		if match(e) {
			found = e
		}
	})
	return found
}

// alive says whether the lease still gives access.
func (e *Lease) alive() bool {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	return e.state == types.HttpNfcLeaseStateInitializing || e.state == types.HttpNfcLeaseStateReady
}

// leaseOn finds a living lease on a machine.
func (l *Lab) leaseOn(machine string) *Lease {
	return l.leases.find(func(e *Lease) bool { return e.machine.Moref == machine && e.alive() })
}

// leased are the calls that a living lease on a machine refuses: they would change what it sends or makes.
var leased = []string{
	"PowerOnVM_Task", "RelocateVM_Task", "MigrateVM_Task", "Destroy_Task", "UnregisterVM", "ReconfigVM_Task", "CloneVM_Task",
	"Rename_Task", "RevertToSnapshot_Task", "RevertToCurrentSnapshot_Task", "ConsolidateVMDisks_Task", "MarkAsTemplate",
	"RemoveAllSnapshots_Task", "ExportVm", "ExportSnapshot",
}

func leaseGuard(c *call) *soap.Fault {
	machine, snapshot := c.this.Value, ""
	if c.this.Type == "VirtualMachineSnapshot" {
		m := c.lab.ownerOf(c.this)
		if m == nil {
			return nil
		}
		machine, snapshot = m.Moref, c.this.Value
	}
	lease := c.lab.leaseOn(machine)
	if lease == nil {
		return nil
	}
	if !contains(leased, c.method) && !(c.method == "RemoveSnapshot_Task" && (lease.snapshot == "" || lease.snapshot == snapshot)) {
		return nil
	}
	return lease.blocks()
}

func (e *Lease) blocks() *soap.Fault {
	return faultOf(&types.MethodDisabled{Source: "HttpNfcLease:" + e.self.Value},
		"The method is disabled by 'HttpNfcLease:%s': a lease on the virtual machine is open", e.self.Value)
}

// leaseBlocks is the fault of an operation on a machine that a lease is open on, nil if none is.
func (l *Lab) leaseBlocks(machine string) *soap.Fault {
	if lease := l.leaseOn(machine); lease != nil {
		return lease.blocks()
	}
	return nil
}

// openLease makes a lease known and lets it become ready after the time that tasks take; a fault rule of kind "task"
// makes it end in error instead.
func (c *call) openLease(machine *Machine, snapshot string, files []*leaseFile) *Lease {
	l := c.lab
	lease := &Lease{
		lab: l, kind: c.method, machine: machine, snapshot: snapshot, files: files, ticket: secret(),
		self: l.reference("HttpNfcLease", "lease"), state: types.HttpNfcLeaseStateInitializing, ended: make(chan struct{}),
	}
	object := &simulator.HttpNfcLease{HttpNfcLease: mo.HttpNfcLease{
		Self: lease.self, State: types.HttpNfcLeaseStateInitializing, Mode: "pushOrGet",
	}}
	simulator.Map.Put(object)
	l.leases.mutex.Lock()
	l.leases.all[lease.self.Value] = lease
	l.leases.mutex.Unlock()
	l.note("%s: lease %s on %s opens", lease.kind, lease.self.Value, machine.name())
	go lease.run(l.take(c.method, machine.name(), true))
	return lease
}

// secret is what nobody can guess.
func secret() string {
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		panic(err)
	}
	return hex.EncodeToString(raw)
}

func (e *Lease) update(changes ...types.PropertyChange) {
	object := simulator.Map.Get(e.self)
	simulator.Map.WithLock(object, func() { simulator.Map.Update(object, changes) })
}

// run takes the lease through its states until somebody ends it or nobody cares for it any more.
func (e *Lease) run(fault *Fault) {
	time.Sleep(time.Duration(e.lab.mode().TaskMillis) * time.Millisecond)
	if fault != nil && fault.Kind == "stuck" {
		fault.stay() // initializing all the while
	} else if fault != nil {
		e.fail(fault.method(), fault.text())
		return
	}
	info := e.info()
	e.mutex.Lock()
	if e.state != types.HttpNfcLeaseStateInitializing {
		e.mutex.Unlock()
		return
	}
	e.state, e.until = types.HttpNfcLeaseStateReady, time.Now().Add(e.lab.leaseTime())
	e.mutex.Unlock()
	e.update(types.PropertyChange{Name: "info", Val: info}, types.PropertyChange{Name: "initializeProgress", Val: int32(100)},
		types.PropertyChange{Name: "state", Val: types.HttpNfcLeaseStateReady})
	for {
		e.mutex.Lock()
		wait := time.Until(e.until)
		e.mutex.Unlock()
		if wait <= 0 {
			e.fail(&types.Timedout{}, "The lease timed out: no progress was reported")
			return
		}
		select {
		case <-e.ended:
			return
		case <-time.After(wait):
		}
	}
}

// leaseTime is how long a lease lives without progress.
func (l *Lab) leaseTime() time.Duration {
	if seconds := l.mode().LeaseSeconds; seconds > 0 {
		return time.Duration(seconds) * time.Second
	}
	return leaseSeconds * time.Second
}

func (e *Lease) info() *types.HttpNfcLeaseInfo {
	info := &types.HttpNfcLeaseInfo{
		Lease: e.self, Entity: e.machine.ref(), LeaseTimeout: int32(e.lab.leaseTime() / time.Second),
	}
	for _, one := range e.files {
		info.TotalDiskCapacityInKB += one.capacity() / 1024
		info.DeviceUrl = append(info.DeviceUrl, types.HttpNfcLeaseDeviceUrl{
			Key: "/" + e.machine.Moref + "/" + one.key, ImportKey: "/" + e.machine.name() + "/" + one.key,
			Url: fmt.Sprintf("https://%s/nfc/%s/%s", e.lab.leaseHost(), e.ticket, one.name), SslThumbprint: thumbprint(),
			Disk: types.NewBool(one.disk), TargetId: one.name, FileSize: one.estimate(),
		})
	}
	return info
}

// leaseHost is "*", which stands for the server that was asked, or the host that a mode names.
func (l *Lab) leaseHost() string {
	name := l.mode().LeaseHost
	port, err := os.ReadFile(filepath.Join(l.folder, "port"))
	if name == "" || err != nil {
		return "*"
	}
	return name + ":" + string(port)
}

// thumbprint is the SHA-1 of the peer's certificate, as clients are told to expect it of the hosts.
func thumbprint() string {
	text, err := os.ReadFile(os.Args[3])
	if err != nil {
		return ""
	}
	part, _ := pem.Decode(text)
	if part == nil {
		return ""
	}
	return strings.ToUpper(strings.ReplaceAll(fmt.Sprintf("% x", sha1.Sum(part.Bytes)), " ", ":"))
}

// estimate is the size a file will about have; a host does not know the packed one either.
func (f *leaseFile) estimate() int64 {
	path := f.path
	if f.disk {
		path = f.layers[len(f.layers)-1].data()
	}
	if stat, err := os.Stat(path); err == nil {
		return stat.Size()
	}
	return 0
}

// end takes a living lease to its last state; false if it had ended before.
func (e *Lease) end(state types.HttpNfcLeaseState) bool {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	if e.state != types.HttpNfcLeaseStateInitializing && e.state != types.HttpNfcLeaseStateReady {
		return false
	}
	e.state = state
	close(e.ended)
	return true
}

// fail ends the lease in error, and with an import the machine that was to be.
func (e *Lease) fail(fault types.BaseMethodFault, message string) {
	if !e.end(types.HttpNfcLeaseStateError) {
		return
	}
	e.lab.note("%s: lease %s on %s ends: %s", e.kind, e.self.Value, e.machine.name(), message)
	e.update(types.PropertyChange{Name: "error", Val: &types.LocalizedMethodFault{Fault: fault, LocalizedMessage: message}},
		types.PropertyChange{Name: "state", Val: types.HttpNfcLeaseStateError})
	e.undo()
}

func (e *Lease) undo() {
	if e.kind == "ImportVApp" {
		e.lab.discard(e.machine)
	}
}

// leaseCall answers the calls on a lease.
func (l *Lab) leaseCall(body interface{}) (interface{}, *soap.Fault) {
	switch call := body.(type) {
	case *types.HttpNfcLeaseProgress:
		lease, fault := l.living(call.This)
		if fault != nil {
			return nil, fault
		}
		until := time.Now().Add(l.leaseTime())
		lease.mutex.Lock()
		lease.until = until
		lease.mutex.Unlock()
		lease.update(types.PropertyChange{Name: "transferProgress", Val: call.Percent})
		return &types.HttpNfcLeaseProgressResponse{}, nil
	case *types.HttpNfcLeaseComplete:
		lease, fault := l.living(call.This)
		if fault != nil {
			return nil, fault
		}
		return lease.complete()
	case *types.HttpNfcLeaseAbort:
		lease, fault := l.living(call.This)
		if fault != nil {
			return nil, fault
		}
		why := &types.LocalizedMethodFault{Fault: &types.RequestCanceled{}, LocalizedMessage: "The lease was aborted"}
		if call.Fault != nil {
			why = call.Fault
		}
		lease.fail(why.Fault, why.LocalizedMessage)
		return &types.HttpNfcLeaseAbortResponse{}, nil
	case *types.HttpNfcLeaseGetManifest:
		lease, fault := l.living(call.This)
		if fault != nil {
			return nil, fault
		}
		return &types.HttpNfcLeaseGetManifestResponse{Returnval: lease.manifest()}, nil
	}
	return nil, faultOf(&types.NotSupported{}, "%T is no call of a lease", body)
}

func (l *Lab) living(ref types.ManagedObjectReference) (*Lease, *soap.Fault) {
	lease := l.leases.find(func(e *Lease) bool { return e.self == ref })
	if lease == nil {
		return nil, faultOf(&types.ManagedObjectNotFound{Obj: ref}, "The object '%s:%s' has already been deleted or has not been completely created",
			ref.Type, ref.Value)
	}
	if !lease.alive() {
		object, _ := simulator.Map.Get(ref).(*simulator.HttpNfcLease)
		if object != nil && object.Error != nil {
			if _, late := object.Error.Fault.(*types.Timedout); late {
				return nil, faultOf(&types.Timedout{}, "Operation timed out.")
			}
		}
		return nil, faultOf(&types.InvalidState{}, "The operation is not allowed in the current state.")
	}
	return lease, nil
}

func (e *Lease) complete() (interface{}, *soap.Fault) {
	e.mutex.Lock()
	ready := e.state == types.HttpNfcLeaseStateReady
	e.mutex.Unlock()
	if !ready {
		return nil, faultOf(&types.InvalidState{}, "The operation is not allowed in the current state.")
	}
	for _, one := range e.files {
		one.mutex.Lock()
		busy := one.busy
		one.mutex.Unlock()
		if busy && e.kind == "ImportVApp" { // an export that somebody breaks off just ends
			return nil, faultOf(&types.InvalidState{}, "%s is still being transferred", one.name)
		}
	}
	if !e.end(types.HttpNfcLeaseStateDone) {
		return nil, faultOf(&types.InvalidState{}, "The operation is not allowed in the current state.")
	}
	e.lab.note("%s: lease %s on %s is complete", e.kind, e.self.Value, e.machine.name())
	e.update(types.PropertyChange{Name: "state", Val: types.HttpNfcLeaseStateDone})
	return &types.HttpNfcLeaseCompleteResponse{}, nil
}

// manifest tells of the files that were fetched whole.
func (e *Lease) manifest() []types.HttpNfcLeaseManifestEntry {
	var entries []types.HttpNfcLeaseManifestEntry
	for _, one := range e.files {
		one.mutex.Lock()
		if one.sent {
			entries = append(entries, types.HttpNfcLeaseManifestEntry{
				Key: "/" + e.machine.Moref + "/" + one.key, Sha1: one.sum, Size: one.size, Disk: one.disk, Capacity: one.capacity(),
				PopulatedSize: one.estimate(),
			})
		}
		one.mutex.Unlock()
	}
	return entries
}
