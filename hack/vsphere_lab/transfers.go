package main

// Bodies of leases: what is fetched from and sent to /nfc/TICKET/NAME.

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

func (l *Lab) leaseOfPath(r *http.Request) (*Lease, string) {
	ticket, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/nfc/"), "/")
	return l.leases.find(func(e *Lease) bool { return e.ticket == ticket }), name
}

// serveNfc answers everything under /nfc/.
func (l *Lab) serveNfc(w http.ResponseWriter, r *http.Request) {
	lease, name := l.leaseOfPath(r)
	if lease == nil || !lease.alive() {
		http.Error(w, "no such lease", http.StatusNotFound)
		return
	}
	for _, one := range lease.files {
		if one.name == name {
			lease.transfer(one, w, r)
			return
		}
	}
	http.Error(w, "the lease has no such file", http.StatusNotFound)
}

func (e *Lease) transfer(file *leaseFile, w http.ResponseWriter, r *http.Request) {
	fetch := r.Method == http.MethodGet
	if importing := e.kind == "ImportVApp"; importing == fetch || !importing && r.Method != http.MethodGet {
		http.Error(w, r.Method+" does not go with this lease", http.StatusMethodNotAllowed)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodPut && r.Method != http.MethodPost {
		http.Error(w, r.Method+" is not known", http.StatusMethodNotAllowed)
		return
	}
	file.mutex.Lock()
	busy := file.busy
	file.busy = true
	file.mutex.Unlock()
	if busy {
		http.Error(w, "the file is being transferred", http.StatusConflict)
		return
	}
	defer func() {
		file.mutex.Lock()
		file.busy = false
		file.mutex.Unlock()
	}()
	if fetch {
		e.send(file, w)
		return
	}
	e.receive(file, w, r)
}

// leaseWriter sends until the lease ends, counts and sums.
type leaseWriter struct {
	http.ResponseWriter
	lease *Lease
	sum   hash.Hash
	size  int64
}

func (w *leaseWriter) Write(data []byte) (int, error) {
	select {
	case <-w.lease.ended:
		return 0, fmt.Errorf("the lease ended")
	default:
	}
	n, err := w.ResponseWriter.Write(data)
	w.sum.Write(data[:n])
	w.size += int64(n)
	return n, err
}

func (e *Lease) send(file *leaseFile, w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/x-vnd.vmware-streamVmdk")
	out := &leaseWriter{ResponseWriter: w, lease: e, sum: sha1.New()}
	if err := e.copyOut(file, out); err != nil {
		e.lab.note("%s: %s of %s is cut short after %d bytes: %s", e.kind, file.name, e.machine.name(), out.size, err)
		panic(http.ErrAbortHandler) // so that no client takes the half for the whole
	}
	file.mutex.Lock()
	file.sent, file.size, file.sum = true, out.size, hex.EncodeToString(out.sum.Sum(nil))
	file.mutex.Unlock()
}

func (e *Lease) copyOut(file *leaseFile, out io.Writer) error {
	if !file.disk {
		in, err := os.Open(file.path)
		if err != nil {
			return err
		}
		defer in.Close()
		_, err = io.Copy(out, in)
		return err
	}
	chain, err := openReader(file.layers)
	if err != nil {
		return err
	}
	defer chain.Close()
	return writeStream(out, chain, chain.Capacity, file.name)
}

// receive takes a body as the content of a disk. What is no stream-optimized VMDK of its size ends the lease.
func (e *Lease) receive(file *leaseFile, w http.ResponseWriter, r *http.Request) {
	err := e.copyIn(file, r.Body)
	if err != nil {
		// Read to the end, so that the client hears the answer rather than a broken connection.
		_, _ = io.Copy(io.Discard, r.Body)
		e.lab.note("%s: %s of %s is refused: %s", e.kind, file.name, e.machine.name(), err)
		http.Error(w, fmt.Sprintf("%s: %s", file.name, err), http.StatusInternalServerError)
		if _, wrong := err.(*notAStream); wrong {
			e.fail(&types.InvalidFormat{}, fmt.Sprintf("%s: %s", file.name, err))
		}
		return
	}
	file.mutex.Lock()
	file.received = true
	file.mutex.Unlock()
	status := http.StatusOK
	if r.Method == http.MethodPut {
		status = http.StatusCreated
	}
	w.WriteHeader(status)
}

func (e *Lease) copyIn(file *leaseFile, body io.Reader) error {
	temporary, err := os.CreateTemp(filepath.Dir(file.layers[0].Extent), ".nfc-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	defer temporary.Close()
	capacity, err := readStream(body, temporary)
	if err != nil {
		return err
	}
	if capacity != file.capacity() {
		return fmt.Errorf("the disk sent has %d bytes, the one to be made %d", capacity, file.capacity())
	}
	select {
	case <-e.ended:
		return fmt.Errorf("the lease ended")
	default:
	}
	return e.lab.takeContent(e.machine, file, temporary.Name())
}
