package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// leaseMachine names the machine of a request under /nfc; leases.go sets it.
var leaseMachine = func(*Lab, *http.Request) string { return "" }

func init() { paths["/folder"] = serveFolder }

// folderPath is the datastore path that a request names: /folder/DIR/FILE?dcPath=DC&dsName=DS.
func folderPath(r *http.Request) (center, text string) {
	query := r.URL.Query()
	file := strings.Trim(strings.TrimPrefix(r.URL.Path, "/folder"), "/")
	return path.Base(query.Get("dcPath")), joinPath(query.Get("dsName"), file)
}

// serveFolder is the datastore over HTTP.
func serveFolder(l *Lab, w http.ResponseWriter, r *http.Request) {
	if !l.allowed(r) {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return
	}
	center, text := folderPath(r)
	file, store, err := l.local(center, text)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	writes := r.Method == http.MethodPut || r.Method == http.MethodPost || r.Method == http.MethodDelete
	if holder := l.locked(center, text, writes); holder != "" {
		http.Error(w, fmt.Sprintf("Unable to access file %s since it is locked by %s", text, holder),
			http.StatusInternalServerError)
		return
	}
	switch r.Method {
	case http.MethodPut, http.MethodPost:
		l.upload(w, r, store, file)
	case http.MethodDelete:
		if err := os.Remove(file); err != nil {
			http.NotFound(w, r)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	case http.MethodGet, http.MethodHead:
		download(w, r, file)
	default:
		http.Error(w, r.Method, http.StatusMethodNotAllowed)
	}
}

func download(w http.ResponseWriter, r *http.Request, file string) {
	f, err := os.Open(file)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if info.IsDir() {
		entries, _ := f.ReadDir(-1)
		w.Header().Set("Content-Type", "text/html")
		for _, one := range entries {
			fmt.Fprintf(w, "<a href=\"%s\">%s</a>\n", url.PathEscape(one.Name()), one.Name())
		}
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", info.ModTime(), f)
}

func (l *Lab) upload(w http.ResponseWriter, r *http.Request, store *Datastore, file string) {
	if store.objects() && strings.HasSuffix(file, "-flat.vmdk") {
		http.Error(w, store.Type+" datastores hold disks as objects: flat files cannot be written",
			http.StatusForbidden)
		return
	}
	status := http.StatusCreated
	if _, err := os.Stat(file); err == nil {
		status = http.StatusOK
		if r.Method == http.MethodPost {
			http.Error(w, "it exists", http.StatusConflict)
			return
		}
	}
	if _, err := os.Stat(filepath.Dir(file)); err != nil {
		// vCenter makes no folder for an upload.
		http.Error(w, "the folder does not exist", http.StatusNotFound)
		return
	}
	f, err := os.Create(file)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	n, err := io.Copy(&sparseWriter{f: f}, r.Body)
	if cut := f.Truncate(n); err == nil {
		err = cut
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(status)
}

// sparseWriter leaves holes where zeros come.
type sparseWriter struct {
	f  *os.File
	at int64
}

var zeros [32 << 10]byte

func (s *sparseWriter) Write(data []byte) (int, error) {
	if len(data) > len(zeros) || string(data) != string(zeros[:len(data)]) {
		if _, err := s.f.WriteAt(data, s.at); err != nil {
			return 0, err
		}
	}
	s.at += int64(len(data))
	return len(data), nil
}

// locked names the machine that holds a file. A running machine holds the extents it writes into for itself; those
// under a snapshot may be read, not written. A machine with an open export lease counts as running: see leases.go.
func (l *Lab) locked(center, text string, writes bool) string {
	for _, m := range l.all() {
		m.mu.RLock()
		holder := ""
		if m.Center == center && (m.Power == "poweredOn" || l.leaseOn(m.Moref) != nil) {
			for _, disk := range disksOf(m.Config) {
				if l.holds(m, disk, text, writes) {
					holder = m.Config.Name
				}
			}
		}
		m.mu.RUnlock()
		if holder != "" {
			return holder
		}
	}
	return ""
}

func (l *Lab) holds(m *Machine, disk *types.VirtualDisk, text string, writes bool) bool {
	b := backingOf(disk)
	if b == nil {
		return false
	}
	// Cheap first: most files are of other machines' folders.
	store, file, err := splitPath(*b.FileName)
	wanted, asked, askedErr := splitPath(text)
	if err != nil || askedErr != nil || store != wanted || path.Dir(file) != path.Dir(asked) {
		return false
	}
	layers, err := l.chain(m.Center, *b.FileName)
	if err != nil {
		return false
	}
	for i, y := range layers {
		extent := joinPath(store, path.Join(path.Dir(file), y.ExtentName))
		if text == extent && (i == 0 || writes) || text == y.Path && writes {
			return true
		}
	}
	return false
}

// machineOfPath names the machine whose folder a request for a file is about, for the rules of faults.
func (l *Lab) machineOfPath(r *http.Request) string {
	if !strings.HasPrefix(r.URL.Path, "/folder") {
		return leaseMachine(l, r)
	}
	center, text := folderPath(r)
	store, file, err := splitPath(text)
	if err != nil {
		return ""
	}
	for _, m := range l.all() {
		m.mu.RLock()
		name, own, _ := splitPath(m.Config.Files.VmPathName)
		found := m.Center == center && name == store && path.Dir(own) == path.Dir(file)
		machine := m.Config.Name
		m.mu.RUnlock()
		if found {
			return machine
		}
	}
	return ""
}

// throttled lets a body pass no faster than the mode diskBytesPerSecond says, the answer's or that of an upload.
type throttled struct {
	http.ResponseWriter
	body io.ReadCloser
	rate int64
	sent int64
	from time.Time
}

func (l *Lab) throttle(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	rate := l.mode().DiskBytesPerSecond
	if rate <= 0 {
		return w
	}
	one := &throttled{ResponseWriter: w, body: r.Body, rate: rate, from: time.Now()}
	if r.Method != http.MethodGet {
		r.Body = one
	}
	return one
}

func (t *throttled) pass(n int) {
	t.sent += int64(n)
	due := time.Duration(float64(t.sent) / float64(t.rate) * float64(time.Second))
	time.Sleep(time.Until(t.from.Add(due)))
}

func (t *throttled) Write(data []byte) (int, error) {
	n, err := t.ResponseWriter.Write(data)
	t.pass(n)
	return n, err
}

func (t *throttled) Read(data []byte) (int, error) {
	n, err := t.body.Read(data)
	t.pass(n)
	return n, err
}

func (t *throttled) Close() error { return t.body.Close() }
