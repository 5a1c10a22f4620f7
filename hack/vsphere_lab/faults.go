package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// Fault is a rule that makes calls go wrong. On is a method ("CreateSnapshot_Task") or an HTTP request ("GET /folder").
//
//	task      the task ends with the fault; with late its effect has come all the same
//	stuck     the task stays running for seconds (an hour if none are given) before it goes on
//	forget    the task is done, and forgotten before anybody hears of it
//	fault     the call is answered with the fault
//	http503   the call is answered 503
//	reset     the connection is reset after afterBytes of the body: the answer's, or of a PUT or POST of a file its own
//	truncate  the connection is closed likewise
//	slow      the answer comes after seconds
//	hang      no answer comes until the client gives up, or for seconds
//	expire    the session is forgotten first
//	crash     the whole peer dies at once; with late, of a task: after its effect, before the task is told to be done
type Fault struct {
	Id         int     `json:"id"`
	On         string  `json:"on"`
	Vm         string  `json:"vm"`
	Kind       string  `json:"kind"`
	Fault      string  `json:"fault"`
	Message    string  `json:"message"`
	Count      *int    `json:"count"`
	Skip       int     `json:"skip"`
	AfterBytes int64   `json:"afterBytes"`
	Seconds    float64 `json:"seconds"`
	Late       bool    `json:"late"`
	Hits       int     `json:"hits"`
}

var faultKinds = []string{"task", "stuck", "forget", "fault", "http503", "reset", "truncate", "slow", "hang", "expire", "crash"}

func (l *Lab) addFault(one *Fault) (int, error) {
	if !contains(faultKinds, one.Kind) {
		return 0, fmt.Errorf("kind %q is none of %v", one.Kind, faultKinds)
	}
	if one.On == "" {
		return 0, fmt.Errorf("\"on\" is missing: the call that is to go wrong")
	}
	text(&one.Fault, "SystemError")
	if one.Kind == "task" || one.Kind == "fault" {
		if _, ok := faultNamed(one.Fault); !ok {
			return 0, fmt.Errorf("the API knows no fault %q", one.Fault)
		}
	}
	if one.Count == nil {
		once := 1
		one.Count = &once
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nextFault++
	one.Id = l.nextFault
	l.faults = append(l.faults, one)
	return one.Id, nil
}

// take finds the first rule for a call and counts it down: those of its task, or those of the call itself.
func (l *Lab) take(on, vm string, task bool) *Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.faults {
		if one.meant(on, vm, task) && one.counts() {
			return l.taken(one)
		}
	}
	return nil
}

// takeAll is take for all rules of a call: one may be slow and then be cut. What answers it ends the list.
func (l *Lab) takeAll(on, vm string) []*Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []*Fault
	for _, one := range l.faults {
		if one.meant(on, vm, false) && one.counts() {
			found = append(found, l.taken(one))
			if contains([]string{"fault", "http503", "hang", "crash"}, one.Kind) {
				break
			}
		}
	}
	return found
}

func (f *Fault) meant(on, vm string, task bool) bool {
	inTask := f.Kind == "task" || f.Kind == "stuck" || f.Kind == "forget" || f.Kind == "crash" && f.Late
	return f.On == on && (f.Vm == "" || f.Vm == vm) && inTask == task
}

// counts says whether a rule holds for this call, which it counts.
func (f *Fault) counts() bool {
	if *f.Count > 0 && f.Hits-f.Skip >= *f.Count {
		return false
	}
	f.Hits++
	return f.Hits > f.Skip
}

func (l *Lab) taken(one *Fault) *Fault {
	l.events = append(l.events, fmt.Sprintf("fault %d: %s of %s", one.Id, one.Kind, one.On))
	taken := *one
	return &taken
}

func faultNamed(name string) (types.BaseMethodFault, bool) {
	kind, ok := typeOf(name)
	if !ok {
		return nil, false
	}
	fault, ok := reflect.New(kind).Interface().(types.BaseMethodFault)
	return fault, ok
}

func (f *Fault) method() types.BaseMethodFault {
	fault, _ := faultNamed(f.Fault)
	// Clients cannot decode references and states that are empty.
	root := vimContent().RootFolder
	switch one := fault.(type) {
	case *types.TaskInProgress:
		one.Task = types.ManagedObjectReference{Type: "Task", Value: "task-0"}
	case *types.ManagedObjectNotFound:
		one.Obj = root
	case *types.NotAuthenticated:
		one.Object, one.PrivilegeId = root, "System.View"
	case *types.NoPermission:
		one.Object, one.PrivilegeId = root, "VirtualMachine.State.CreateSnapshot"
	case *types.InvalidPowerState:
		one.RequestedState, one.ExistingState = "poweredOff", "poweredOn"
	case *types.DuplicateName:
		one.Object = root
	}
	return fault
}

// stay waits as long as something is to be stuck.
func (f *Fault) stay() {
	seconds := f.Seconds
	if seconds == 0 {
		seconds = 3600
	}
	time.Sleep(time.Duration(seconds * float64(time.Second)))
}

func (f *Fault) text() string {
	if f.Message != "" {
		return f.Message
	}
	return "The lab was told to fail with " + f.Fault
}

// strike carries a rule out before the call; done says that the request has had its answer.
func (l *Lab) strike(f *Fault, w http.ResponseWriter, r *http.Request) (http.ResponseWriter, bool) {
	wait := func(seconds float64) {
		select {
		case <-time.After(time.Duration(seconds * float64(time.Second))):
		case <-r.Context().Done():
		}
	}
	switch f.Kind {
	case "http503":
		http.Error(w, f.text(), http.StatusServiceUnavailable)
		return w, true
	case "slow":
		wait(f.Seconds)
	case "hang":
		if f.Seconds == 0 {
			f.Seconds = 3600
		}
		wait(f.Seconds)
		cut(w, false)
		return w, true
	case "reset", "truncate":
		if r.Method != http.MethodGet && !strings.HasPrefix(r.URL.Path, "/sdk") {
			r.Body = &cutBody{ReadCloser: r.Body, w: w, left: f.AfterBytes, reset: f.Kind == "reset"}
			return w, false
		}
		return &cutter{ResponseWriter: w, left: f.AfterBytes, reset: f.Kind == "reset"}, false
	case "expire":
		if one := l.session(r); one != nil {
			l.endSession(one)
		}
		l.tags().end(r)
	case "crash":
		crash()
	}
	return w, false
}

// cutter lets so many bytes of a body pass, then the connection goes.
type cutter struct {
	http.ResponseWriter
	left  int64
	reset bool
}

func (c *cutter) Write(data []byte) (int, error) {
	if int64(len(data)) <= c.left {
		c.left -= int64(len(data))
		return c.ResponseWriter.Write(data)
	}
	_, _ = c.ResponseWriter.Write(data[:c.left])
	if flusher, ok := c.ResponseWriter.(http.Flusher); ok {
		flusher.Flush()
	}
	cut(c.ResponseWriter, c.reset)
	return 0, http.ErrAbortHandler
}

// cutBody lets so many bytes of an upload come, then the connection goes.
type cutBody struct {
	io.ReadCloser
	w     http.ResponseWriter
	left  int64
	reset bool
}

func (c *cutBody) Read(data []byte) (int, error) {
	if c.left <= 0 {
		cut(c.w, c.reset)
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.ReadCloser.Read(data[:min64(int64(len(data)), c.left)])
	c.left -= int64(n)
	return n, err
}

// cut ends the connection of an answer: by RST, or as if the answer were over.
func cut(w http.ResponseWriter, reset bool) {
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	var connection net.Conn
	var buffer *bufio.ReadWriter
	connection, buffer, err := hijacker.Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_ = buffer.Flush()
	if secure, ok := connection.(*tls.Conn); ok && reset {
		if tcp, ok := secure.NetConn().(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
			_ = tcp.Close()
			return
		}
	}
	_ = connection.Close()
}
