package main

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// work is what a task does once its machine is free; the result is the task's.
type work func() (types.AnyType, types.BaseMethodFault)

var taskNumber int64

// start runs work as a task: queued while the machine is busy, then running for taskMillis with progress, then done.
// Its effect comes halfway, so a client that lost the answer may find it. m is nil where no machine is concerned.
func (c *call) start(name string, entity types.ManagedObjectReference, m *Machine, do work) types.ManagedObjectReference {
	t := &simulator.Task{}
	t.Self = types.ManagedObjectReference{Type: "Task",
		Value: fmt.Sprintf("task-%d", int64(c.lab.facts.Boots)*1_000_000+atomic.AddInt64(&taskNumber, 1))}
	user := "vpxd"
	if c.session != nil {
		user = c.session.ctx.Session.UserName
	}
	t.Info = types.TaskInfo{Key: t.Self.Value, Task: t.Self, Name: name, DescriptionId: entity.Type + "." + name,
		Entity: &entity, EntityName: c.machineName(), State: types.TaskInfoStateQueued, QueueTime: time.Now(),
		Reason: &types.TaskReasonUser{UserName: user}}
	simulator.Map.Put(t)
	if m != nil {
		showTask(m, t.Self)
	}
	// The fault is chosen when the call is made: a rule set later is not for it.
	fault := c.lab.take(c.method, c.machineName(), true)
	millis := c.lab.mode().TaskMillis
	go c.run(t, m, fault, time.Duration(millis)*time.Millisecond, do)
	return t.Self
}

// showTask puts a task among the machine's recent ones, of which there are a few.
func showTask(m *Machine, task types.ManagedObjectReference) {
	vm, ok := simulator.Map.Get(m.ref()).(*simulator.VirtualMachine)
	if !ok {
		return
	}
	simulator.Map.WithLock(vm, func() {
		recent := append(append([]types.ManagedObjectReference(nil), vm.RecentTask...), task)
		if len(recent) > 8 {
			recent = recent[len(recent)-8:]
		}
		vm.RecentTask = recent
	})
}

func (c *call) run(t *simulator.Task, m *Machine, fault *Fault, length time.Duration, do work) {
	update := func(changes ...types.PropertyChange) {
		simulator.Map.WithLock(t, func() { simulator.Map.Update(t, changes) })
	}
	if m != nil {
		m.ops.Lock()
		defer m.ops.Unlock()
	}
	update(types.PropertyChange{Name: "info.startTime", Val: time.Now()},
		types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateRunning},
		types.PropertyChange{Name: "info.progress", Val: int32(1)})
	for step := int32(1); step <= 2; step++ {
		time.Sleep(length / 4)
		update(types.PropertyChange{Name: "info.progress", Val: step * 25})
	}
	if fault != nil && fault.Kind == "stuck" {
		fault.stay()
		fault = nil
	}
	if fault != nil && fault.Kind == "forget" {
		do()
		simulator.Map.Remove(t.Self)
		return
	}
	result, failed := types.AnyType(nil), types.BaseMethodFault(nil)
	message := ""
	if fault != nil && !fault.Late {
		failed, message = fault.method(), fault.text()
	} else {
		result, failed = do()
		if fault != nil && fault.Kind == "crash" {
			crash()
		}
		if failed == nil && fault != nil {
			result, failed, message = nil, fault.method(), fault.text()
		}
	}
	time.Sleep(length / 2)
	c.lab.finish(t, c, update, result, failed, message)
}

func (l *Lab) finish(t *simulator.Task, c *call, update func(...types.PropertyChange),
	result types.AnyType, failed types.BaseMethodFault, message string) {
	changes := []types.PropertyChange{
		{Name: "info.completeTime", Val: time.Now()},
		{Name: "info.progress", Val: int32(100)},
		{Name: "info.result", Val: result},
		{Name: "info.state", Val: types.TaskInfoStateSuccess},
	}
	if failed != nil {
		if message == "" {
			message = sayFault(failed)
		}
		changes[1].Val = int32(0)
		changes[3].Val = types.TaskInfoStateError
		changes = append(changes, types.PropertyChange{Name: "info.error",
			Val: types.LocalizedMethodFault{Fault: failed, LocalizedMessage: message}})
	}
	l.note("%s of %s: %s %s", t.Info.Name, c.machineName(), changes[3].Val, message)
	update(changes...)
	// vCenter forgets tasks after a while.
	time.AfterFunc(10*time.Minute, func() { simulator.Map.Remove(t.Self) })
}

func sayFault(fault types.BaseMethodFault) string {
	kind := fmt.Sprintf("%T", fault)[len("*types."):]
	switch one := fault.(type) {
	case types.BaseFileFault:
		return fmt.Sprintf("%s: %s", kind, one.GetFileFault().File)
	case *types.InvalidArgument:
		return "A specified parameter was not correct: " + one.InvalidProperty
	case *types.InvalidPowerState:
		return fmt.Sprintf("The attempted operation cannot be performed in the current state (%s).", one.ExistingState)
	case *types.ApplicationQuiesceFault:
		return "An error occurred while quiescing the virtual machine. See the virtual machine's event log for details."
	case *types.GenericVmConfigFault:
		return one.Reason
	}
	return kind
}

func notFound(ref types.ManagedObjectReference) *soap.Fault {
	return faultOf(&types.ManagedObjectNotFound{Obj: ref},
		"The object '%s' has already been deleted or has not been completely created", "vim."+ref.Type+":"+ref.Value)
}

// machineName names the machine that a call is about, "" if none.
func (c *call) machineName() string {
	if c.subject == nil {
		return ""
	}
	return *c.subject
}
