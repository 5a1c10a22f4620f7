package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// What vddk.py, the stand-in for nbdkit's vddk plugin, asks: may this session open that disk, and where on this machine
// does its content lie. The answers are the ones VDDK would give, each with the function that would give it.

// vddkLayout is the answer to an open: pieces are offset, length, and the number of the file that holds them, at the
// same offset; what no piece covers is zero.
type vddkLayout struct {
	Capacity       int64      `json:"capacity"`
	Files          []string   `json:"files"`
	Pieces         [][3]int64 `json:"pieces"`
	Ticket         string     `json:"ticket"`
	Fault          *Fault     `json:"fault"`
	BytesPerSecond int64      `json:"bytesPerSecond"`
}

// vddkWriter is a live disk that a writable open may write to.
type vddkWriter struct {
	machine *Machine
	key     int32
	file    string
}

type vddkTickets struct {
	mutex sync.Mutex
	all   map[string]vddkWriter
}

var vddkWriters = vddkTickets{all: map[string]vddkWriter{}}

func init() { paths["/lab/vddk"] = (*Lab).serveVddk }

func (l *Lab) serveVddk(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		l.vddkWrite(w, r)
		return
	}
	if l.session(r) == nil {
		http.Error(w, "The session is not authenticated", http.StatusUnauthorized)
		return
	}
	layout, refusal := l.vddkOpen(r)
	if refusal != "" {
		l.note("vddk: %s", refusal)
		http.Error(w, refusal, http.StatusForbidden)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(layout)
}

func (l *Lab) vddkOpen(r *http.Request) (*vddkLayout, string) {
	query := r.URL.Query()
	file, snapshot, readonly := query.Get("file"), query.Get("snapshot"), query.Get("readonly") == "1"
	moref := strings.TrimPrefix(query.Get("vm"), "moref=")
	m := l.machine(types.ManagedObjectReference{Type: "VirtualMachine", Value: moref})
	if m == nil || moref == query.Get("vm") {
		return nil, "VixDiskLib_ConnectEx: The virtual machine cannot be found"
	}
	name := m.name()
	m.mu.RLock()
	defer m.mu.RUnlock()
	config := m.Config
	if snapshot != "" {
		one := m.snapshot(snapshot)
		if one == nil {
			return nil, "VixDiskLib_ConnectEx: The snapshot does not exist"
		}
		config = one.Config
	}
	disk := diskWithFile(config, file)
	switch {
	case disk == nil:
		return nil, fmt.Sprintf("VixDiskLib_Open: %s: A file was not found", file)
	case snapshot != "" && !readonly:
		return nil, fmt.Sprintf("VixDiskLib_Open: %s: You do not have access rights to this file", file)
	case snapshot == "" && m.Power != "poweredOff", !readonly && l.leaseOn(m.Moref) != nil:
		return nil, fmt.Sprintf("VixDiskLib_Open: %s: Failed to lock the file", file)
	}
	layers, err := l.chain(m.Center, file)
	if err != nil {
		return nil, fmt.Sprintf("VixDiskLib_Open: %s: %s", file, err)
	}
	layout, err := layoutOf(layers)
	if err != nil {
		return nil, fmt.Sprintf("VixDiskLib_Open: %s: %s", file, err)
	}
	layout.BytesPerSecond = l.mode().DiskBytesPerSecond
	layout.Fault = l.take("nbdkit", name, false)
	layout.Ticket = secret()
	if !readonly {
		vddkWriters.mutex.Lock()
		vddkWriters.all[layout.Ticket] = vddkWriter{machine: m, key: disk.Key, file: file}
		vddkWriters.mutex.Unlock()
	}
	return layout, ""
}

// held says that a file is open in a reader or writer of VDDK's, which locks it as a host does: it cannot be merged.
// A host tries for a while too, since a reader that was just told to close takes its time.
func held(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	for until := time.Now().Add(time.Second); ; time.Sleep(10 * time.Millisecond) {
		if syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != syscall.EWOULDBLOCK {
			return false
		}
		if time.Now().After(until) {
			return true
		}
	}
}

func diskWithFile(config *types.VirtualMachineConfigInfo, file string) *types.VirtualDisk {
	for _, disk := range disksOf(config) {
		if b := backingOf(disk); b != nil && *b.FileName == file {
			return disk
		}
	}
	return nil
}

// layoutOf names for each part of a disk the file of the topmost layer that holds it.
func layoutOf(layers []*Layer) (*vddkLayout, error) {
	chain, err := openReader(layers)
	if err != nil {
		return nil, err
	}
	defer chain.Close()
	layout := &vddkLayout{Capacity: chain.Capacity, Pieces: [][3]int64{}}
	for _, one := range layers {
		layout.Files = append(layout.Files, one.data())
	}
	if len(layers) == 1 && !layers[0].mapped() {
		layout.Pieces = append(layout.Pieces, [3]int64{0, chain.Capacity, 0})
		return layout, nil
	}
	for n := int64(0); n < blocks(chain.Capacity); n++ {
		at := n * block
		for i, one := range layers {
			holds, err := chain.has(i, n)
			if err != nil {
				return nil, err
			}
			if !holds {
				continue
			}
			if length := min64((n+1)*block, min64(chain.Capacity, one.Capacity)) - at; length > 0 {
				layout.add([3]int64{at, length, int64(i)})
			}
			break
		}
	}
	return layout, nil
}

func (y *vddkLayout) add(piece [3]int64) {
	if n := len(y.Pieces); n > 0 {
		if last := &y.Pieces[n-1]; last[2] == piece[2] && last[0]+last[1] == piece[0] {
			last[1] += piece[1]
			return
		}
	}
	y.Pieces = append(y.Pieces, piece)
}

// vddkWrite writes to a live disk, as a guest does: into its first layer, and noted as changed.
func (l *Lab) vddkWrite(w http.ResponseWriter, r *http.Request) {
	vddkWriters.mutex.Lock()
	writer, known := vddkWriters.all[r.URL.Query().Get("ticket")]
	vddkWriters.mutex.Unlock()
	offset, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	if !known || err != nil {
		http.Error(w, "The handle is not valid", http.StatusForbidden)
		return
	}
	data, err := io.ReadAll(r.Body)
	if err == nil {
		err = l.vddkPut(writer, offset, data)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (l *Lab) vddkPut(to vddkWriter, offset int64, data []byte) error {
	m := to.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	disk := diskWithFile(m.Config, to.file)
	if m.gone || disk == nil || disk.Key != to.key || m.Power != "poweredOff" {
		return fmt.Errorf("%s: Failed to lock the file", to.file)
	}
	return l.writeLive(m, disk, offset, data)
}
