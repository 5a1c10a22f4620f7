package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"reflect"
	"runtime/debug"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// call is one SOAP request. A handler answers it with the response ("*types.LoginResponse") or a fault.
type call struct {
	lab     *Lab
	method  string
	this    types.ManagedObjectReference
	body    interface{}
	session *Session // nil without a login
	ctx     *simulator.Context
	request *http.Request
	header  http.Header
	subject *string // name of the machine the call is about
}

type handler func(*call) (interface{}, *soap.Fault)

// methods are the peer's own, by "Type.Method" or by "Method"; the rest is the simulator's.
var methods = map[string]handler{}

// guards may refuse a call of somebody logged in before its handler sees it; other files of this package add theirs.
var guards []func(*call) *soap.Fault

// paths are the peer's own HTTP handlers, by prefix; other files of this package add theirs in init.
var paths = map[string]func(*Lab, http.ResponseWriter, *http.Request){}

func init() { paths["/sdk"] = serveSoap }

// ServeHTTP finds the handler of a request and applies the rules of faults to those that are no SOAP.
func (l *Lab) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if what := recover(); what != nil {
			if what == http.ErrAbortHandler {
				panic(what)
			}
			log.Printf("%s %s: %v\n%s", r.Method, r.URL.Path, what, debug.Stack())
			http.Error(w, fmt.Sprint(what), http.StatusInternalServerError)
		}
	}()
	best := ""
	for prefix := range paths {
		if strings.HasPrefix(r.URL.Path, prefix) && len(prefix) > len(best) {
			best = prefix
		}
	}
	if best == "" {
		http.NotFound(w, r)
		return
	}
	if best != "/sdk" && !strings.HasPrefix(best, "/lab/") {
		on := r.Method + " " + strings.TrimSuffix(best, "/")
		l.count(on)
		for _, fault := range l.takeAll(on, l.machineOfPath(r)) {
			var done bool
			if w, done = l.strike(fault, w, r); done {
				return
			}
			if fault.Kind == "fault" {
				http.Error(w, fault.text(), http.StatusInternalServerError)
				return
			}
		}
		w = l.throttle(w, r)
	}
	paths[best](l, w, r)
}

func serveSoap(l *Lab, w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "vimServiceVersions.xml") {
		w.Header().Set("Content-Type", "text/xml")
		fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><namespaces version="1.0"><namespace><name>urn:vim25</name>`+
			`<version>%s</version><priorVersions><version>6.0</version><version>5.5</version></priorVersions>`+
			`</namespace></namespaces>`, l.config.ApiVersion)
		return
	}
	if r.Method != http.MethodPost {
		http.Error(w, "POST a SOAP envelope", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	method, err := simulator.UnmarshalBody(typeOf, body)
	if err != nil {
		sendFault(w, faultOf(&types.InvalidRequest{}, "%s", err))
		return
	}
	c := &call{lab: l, method: method.Name, this: method.This, body: method.Body, request: r, header: w.Header()}
	c.subject = c.findSubject()
	l.count(c.method)
	for _, fault := range l.takeAll(c.method, c.machineName()) {
		if fault.Kind == "fault" {
			sendFault(w, faultOf(fault.method(), "%s", fault.text()))
			return
		}
		var done bool
		if w, done = l.strike(fault, w, r); done {
			return
		}
	}
	c.session = l.session(r)
	response, fault := c.answer()
	if fault != nil {
		sendFault(w, fault)
		return
	}
	sendAnswer(w, response)
}

// open are the methods that need no session.
var open = []string{"RetrieveServiceContent", "Login", "SessionIsActive", "RetrieveInternalContent"}

func (c *call) answer() (interface{}, *soap.Fault) {
	if c.session == nil && !contains(open, c.method) && !c.openRead() {
		return nil, faultOf(&types.NotAuthenticated{NoPermission: types.NoPermission{
			Object: c.this, PrivilegeId: "System.View"}}, "The session is not authenticated.")
	}
	c.ctx = &simulator.Context{Context: inner.Context, Map: simulator.Map}
	if c.session != nil {
		c.ctx.Session = c.session.ctx.Session
	}
	for _, guard := range guards {
		if fault := guard(c); fault != nil {
			return nil, fault
		}
	}
	if own := methods[c.this.Type+"."+c.method]; own != nil {
		return own(c)
	}
	if own := methods[c.method]; own != nil {
		return own(c)
	}
	return c.pass()
}

// openRead lets the first look of a client pass: the service instance can be read by everyone. With the mode
// anonymousReads all may be asked for, and every property is reported missing for want of a login.
func (c *call) openRead() bool {
	switch req := c.body.(type) {
	case *types.RetrievePropertiesEx:
		return c.lab.mode().AnonymousReads || publicOnly(req.SpecSet)
	case *types.RetrieveProperties:
		return c.lab.mode().AnonymousReads || publicOnly(req.SpecSet)
	}
	return c.method == "Fetch" && c.this == vim25.ServiceInstance
}

func publicOnly(specs []types.PropertyFilterSpec) bool {
	for _, spec := range specs {
		for _, one := range spec.ObjectSet {
			if one.Obj != vim25.ServiceInstance || len(one.SelectSet) > 0 {
				return false
			}
		}
	}
	return true
}

// pass lets the simulator answer, as its own service does.
func (c *call) pass() (interface{}, *soap.Fault) {
	missing := func() (interface{}, *soap.Fault) {
		return nil, faultOf(&types.MethodNotFound{Receiver: c.this, Method: c.method},
			"%s does not implement %s", c.this.Value, c.method)
	}
	if c.this.Type == "VirtualMachine" || c.this.Type == "VirtualMachineSnapshot" {
		if simulator.Map.Get(c.this) == nil {
			return nil, notFound(c.this)
		}
		return missing() // whatever changes a machine is the peer's own
	}
	var object mo.Reference
	if c.ctx.Session != nil {
		object = c.ctx.Session.Get(c.this)
	} else {
		object = simulator.Map.Get(c.this)
	}
	if object == nil {
		return nil, notFound(c.this)
	}
	name := strings.ToUpper(c.method[:1]) + c.method[1:]
	if strings.HasSuffix(name, "_Task") {
		name = strings.TrimSuffix(name, "_Task") + "Task"
	}
	found := reflect.ValueOf(object).MethodByName(name)
	if !found.IsValid() {
		return missing()
	}
	var args []reflect.Value
	if found.Type().NumIn() == 2 {
		args = append(args, reflect.ValueOf(c.ctx))
	}
	args = append(args, reflect.ValueOf(c.body))
	self := c.this
	c.ctx.Caller = &self
	var results []reflect.Value
	simulator.Map.WithLock(object, func() { results = found.Call(args) })
	result := results[0].Interface().(soap.HasFault)
	if fault := result.Fault(); fault != nil {
		return nil, fault
	}
	return reflect.ValueOf(result).Elem().FieldByName("Res").Interface(), nil
}

// findSubject names the machine that a call is about: its own, its snapshot's, or the one it asks about.
func (c *call) findSubject() *string {
	var m *Machine
	switch c.this.Type {
	case "VirtualMachine":
		m = c.lab.machine(c.this)
	case "VirtualMachineSnapshot":
		m = c.lab.ownerOf(c.this)
	case "HttpNfcLease":
		if lease := c.lab.leases.find(func(e *Lease) bool { return e.self == c.this }); lease != nil {
			m = lease.machine
		}
	default:
		switch req := c.body.(type) {
		case *types.RetrievePropertiesEx:
			for _, spec := range req.SpecSet {
				for _, one := range spec.ObjectSet {
					if found := c.lab.machine(one.Obj); found != nil {
						m = found
					}
				}
			}
		case *types.CreateVM_Task:
			return &req.Config.Name
		case *types.RegisterVM_Task:
			return &req.Name
		case *types.ImportVApp:
			if spec, ok := req.Spec.(*types.VirtualMachineImportSpec); ok {
				return &spec.ConfigSpec.Name
			}
		}
	}
	if m == nil {
		return nil
	}
	name := m.name()
	return &name
}
