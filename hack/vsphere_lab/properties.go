package main

import (
	"fmt"
	"reflect"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	vim "github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// page is the rest of an answer that maxObjects cut.
type page struct {
	session *Session
	objects []types.ObjectContent
	size    int32
}

func init() {
	methods["RetrievePropertiesEx"] = retrieve
	methods["ContinueRetrievePropertiesEx"] = continueRetrieve
	methods["CancelRetrievePropertiesEx"] = cancelRetrieve
	methods["Fetch"] = fetch
}

func (c *call) collect(specs []types.PropertyFilterSpec) (*types.RetrieveResult, *soap.Fault) {
	collector := simulator.Map.Get(vimContent().PropertyCollector).(*simulator.PropertyCollector)
	own := *c.ctx
	own.Caller = nil
	result := collector.RetrievePropertiesEx(&own, &types.RetrievePropertiesEx{SpecSet: specs})
	if fault := result.Fault(); fault != nil {
		return nil, fault
	}
	found := result.(*vim.RetrievePropertiesExBody).Res.Returnval
	if hidden := c.lab.mode().Hidden; len(hidden) > 0 {
		found.Objects = visible(found.Objects, hidden)
	}
	return found, nil
}

// visible leaves out what has one of these names: a user without a right on it sees references to it, and no more.
func visible(objects []types.ObjectContent, hidden []string) []types.ObjectContent {
	var kept []types.ObjectContent
	for _, one := range objects {
		entity, ok := simulator.Map.Get(one.Obj).(mo.Entity)
		if !ok || !contains(hidden, entity.Entity().Name) {
			kept = append(kept, one)
		}
	}
	return kept
}

func retrieve(c *call) (interface{}, *soap.Fault) {
	req := c.body.(*types.RetrievePropertiesEx)
	result, fault := c.collect(req.SpecSet)
	if fault != nil {
		return nil, fault
	}
	if len(result.Objects) == 0 {
		return &types.RetrievePropertiesExResponse{}, nil
	}
	most := req.Options.MaxObjects
	if limit := c.lab.mode().MaxObjects; limit > 0 && (most <= 0 || most > limit) {
		most = limit // vCenter may send less than was asked for
	}
	return &types.RetrievePropertiesExResponse{Returnval: c.cut(result.Objects, most)}, nil
}

// cut answers with the first objects and keeps the rest under a token.
func (c *call) cut(objects []types.ObjectContent, most int32) *types.RetrieveResult {
	if most <= 0 || int(most) >= len(objects) {
		return &types.RetrieveResult{Objects: objects}
	}
	token := fmt.Sprint(c.lab.unique())
	c.lab.mu.Lock()
	c.lab.pages[token] = &page{session: c.session, objects: objects[most:], size: most}
	c.lab.mu.Unlock()
	return &types.RetrieveResult{Token: token, Objects: objects[:most]}
}

func (c *call) page(token string) *page {
	c.lab.mu.Lock()
	defer c.lab.mu.Unlock()
	found := c.lab.pages[token]
	if found == nil || found.session != c.session {
		return nil
	}
	delete(c.lab.pages, token)
	return found
}

func continueRetrieve(c *call) (interface{}, *soap.Fault) {
	found := c.page(c.body.(*types.ContinueRetrievePropertiesEx).Token)
	if found == nil {
		return nil, faultOf(&types.InvalidArgument{InvalidProperty: "token"}, "A specified parameter was not correct: token")
	}
	return &types.ContinueRetrievePropertiesExResponse{Returnval: *c.cut(found.objects, found.size)}, nil
}

func cancelRetrieve(c *call) (interface{}, *soap.Fault) {
	if c.page(c.body.(*types.CancelRetrievePropertiesEx).Token) == nil {
		return nil, faultOf(&types.InvalidArgument{InvalidProperty: "token"}, "A specified parameter was not correct: token")
	}
	return &types.CancelRetrievePropertiesExResponse{}, nil
}

// FetchResponse answers the undocumented call by which clients read one property; the simulator panics on unset ones.
type FetchResponse struct {
	Returnval types.AnyType `xml:"returnval,omitempty,typeattr"`
}

func fetch(c *call) (interface{}, *soap.Fault) {
	prop := reflect.ValueOf(c.body).Elem().FieldByName("Prop").String()
	if c.this == vim25.ServiceInstance && prop == "content" {
		return &FetchResponse{*vimContent()}, nil
	}
	kind := c.this.Type
	result, fault := c.collect([]types.PropertyFilterSpec{{
		PropSet:   []types.PropertySpec{{Type: kind, PathSet: []string{prop}}},
		ObjectSet: []types.ObjectSpec{{Obj: c.this}},
	}})
	if fault != nil {
		return nil, fault
	}
	for _, object := range result.Objects {
		for _, missing := range object.MissingSet {
			return nil, faultOf(missing.Fault.Fault, "%s: %s", prop, sayFault(missing.Fault.Fault))
		}
		for _, one := range object.PropSet {
			return &FetchResponse{one.Val}, nil
		}
	}
	return &FetchResponse{}, nil
}

func vimContent() *types.ServiceContent {
	return &simulator.Map.Get(vim25.ServiceInstance).(*simulator.ServiceInstance).Content
}
