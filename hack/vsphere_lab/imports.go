package main

import (
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func importVApp(c *call) (interface{}, *soap.Fault) {
	return nil, faultOf(&types.NotSupported{}, "not yet")
}
