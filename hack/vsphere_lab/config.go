package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// Config is the estate a lab starts with. Every field has a default, so that a test names only what it is about.
type Config struct {
	Username       string             `json:"username"`
	Password       string             `json:"password"`
	ApiVersion     string             `json:"apiVersion"` // what the peer says it speaks: 6.5, 6.7, 7.0.0.0, 8.0.1.0
	TaskMillis     int                `json:"taskMillis"`
	AreasPerAnswer int                `json:"areasPerAnswer"`
	Datacenters    []DatacenterConfig `json:"datacenters"`
	Machines       []MachineConfig    `json:"machines"`
}

// DatacenterConfig names what one datacenter holds; folders are those under its folder of machines ("gold/erp" nests).
type DatacenterConfig struct {
	Name       string            `json:"name"`
	Clusters   []ClusterConfig   `json:"clusters"`
	Hosts      []string          `json:"hosts"`
	Datastores []DatastoreConfig `json:"datastores"`
	Folders    []string          `json:"folders"`
}

// ClusterConfig is a cluster with its hosts.
type ClusterConfig struct {
	Name  string   `json:"name"`
	Hosts []string `json:"hosts"`
	Pools []string `json:"pools"`
}

// DatastoreConfig is one datastore; without hosts every host of the datacenter mounts it.
type DatastoreConfig struct {
	Name          string   `json:"name"`
	Type          string   `json:"type"`
	CapacityBytes int64    `json:"capacityBytes"`
	FreeBytes     *int64   `json:"freeBytes"`
	Hosts         []string `json:"hosts"`
}

// MachineConfig is one virtual machine.
type MachineConfig struct {
	Name                    string            `json:"name"`
	InstanceUuid            string            `json:"instanceUuid"`
	BiosUuid                string            `json:"biosUuid"`
	Datacenter              string            `json:"datacenter"`
	Folder                  string            `json:"folder"`
	Host                    string            `json:"host"`
	Datastore               string            `json:"datastore"`
	Pool                    string            `json:"pool"`
	PowerState              string            `json:"powerState"`
	Template                bool              `json:"template"`
	Firmware                string            `json:"firmware"`
	Nvram                   *bool             `json:"nvram"`
	Tags                    []string          `json:"tags"`
	Attributes              map[string]string `json:"attributes"`
	ChangeTracking          bool              `json:"changeTracking"`
	ChangeTrackingSupported *bool             `json:"changeTrackingSupported"`
	Quiesce                 string            `json:"quiesce"`
	FaultTolerance          bool              `json:"faultTolerance"`
	Encrypted               bool              `json:"encrypted"`
	Vtpm                    bool              `json:"vtpm"`
	GuestId                 string            `json:"guestId"`
	Annotation              string            `json:"annotation"`
	MemoryMB                int64             `json:"memoryMB"`
	Cpus                    int32             `json:"cpus"`
	Disks                   []DiskConfig      `json:"disks"`
}

// DiskConfig is one disk of a machine.
type DiskConfig struct {
	Label      string     `json:"label"`
	Controller string     `json:"controller"`
	SizeBytes  int64      `json:"sizeBytes"`
	From       string     `json:"from"`
	Thin       *bool      `json:"thin"`
	Kind       string     `json:"kind"`
	Mode       string     `json:"mode"`
	Sharing    string     `json:"sharing"`
	BusSharing string     `json:"busSharing"`
	Datastore  string     `json:"datastore"`
	Rdm        *RdmConfig `json:"rdm"`
}

// RdmConfig is the LUN behind a raw device mapping: its content is the file Device of this machine.
type RdmConfig struct {
	Compatibility string `json:"compatibility"`
	Lun           string `json:"lun"`
	Device        string `json:"device"`
}

const gib = int64(1) << 30

func readConfig(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	config := &Config{}
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(config); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	config.defaults()
	return config, nil
}

func (c *Config) defaults() {
	text(&c.Username, "administrator@vsphere.local")
	text(&c.Password, "lab password: 1")
	text(&c.ApiVersion, "6.5")
	if c.AreasPerAnswer == 0 {
		c.AreasPerAnswer = 16
	}
	if c.TaskMillis == 0 {
		c.TaskMillis = 20
	}
	if len(c.Datacenters) == 0 {
		c.Datacenters = []DatacenterConfig{{}}
	}
	for i := range c.Datacenters {
		c.Datacenters[i].defaults(i)
	}
	for i := range c.Machines {
		c.Machines[i].defaults(i, c.Datacenters)
	}
}

func (d *DatacenterConfig) defaults(index int) {
	text(&d.Name, fmt.Sprintf("DC%d", index))
	if d.Clusters == nil && d.Hosts == nil {
		d.Clusters = []ClusterConfig{{Name: fmt.Sprintf("C%d", index), Hosts: []string{"esx1", "esx2"}}}
		d.Hosts = []string{"esx3"}
	}
	if len(d.Datastores) == 0 {
		d.Datastores = []DatastoreConfig{{}}
	}
	for i := range d.Datastores {
		one := &d.Datastores[i]
		text(&one.Name, fmt.Sprintf("ds%d", i+1))
		text(&one.Type, "VMFS")
		if one.CapacityBytes == 0 {
			one.CapacityBytes = 1024 * gib
		}
		if one.FreeBytes == nil {
			free := one.CapacityBytes / 2
			one.FreeBytes = &free
		}
	}
}

func (m *MachineConfig) defaults(index int, datacenters []DatacenterConfig) {
	text(&m.Name, fmt.Sprintf("vm%d", index+1))
	text(&m.InstanceUuid, uuidFor("instance", m.Name))
	text(&m.BiosUuid, uuidFor("bios", m.Name))
	text(&m.Datacenter, datacenters[0].Name)
	for _, one := range datacenters {
		if one.Name == m.Datacenter {
			text(&m.Datastore, one.Datastores[0].Name)
			text(&m.Host, one.firstHost())
		}
	}
	text(&m.PowerState, "poweredOn")
	if m.Template {
		m.PowerState = "poweredOff"
	}
	text(&m.Firmware, "bios")
	text(&m.Quiesce, "ok")
	text(&m.GuestId, "otherGuest64")
	flag(&m.Nvram, true)
	flag(&m.ChangeTrackingSupported, true)
	if m.MemoryMB == 0 {
		m.MemoryMB = 1024
	}
	if m.Cpus == 0 {
		m.Cpus = 1
	}
	for i := range m.Disks {
		one := &m.Disks[i]
		text(&one.Label, fmt.Sprintf("Hard disk %d", i+1))
		text(&one.Controller, fmt.Sprintf("scsi0:%d", i+i/7)) // unit 7 is the adapter's own
		text(&one.Kind, "flat")
		text(&one.Mode, "persistent")
		text(&one.Sharing, "sharingNone")
		text(&one.BusSharing, "noSharing")
		text(&one.Datastore, m.Datastore)
		flag(&one.Thin, true)
		if one.SizeBytes == 0 && one.From == "" && (one.Rdm == nil || one.Rdm.Device == "") {
			one.SizeBytes = 16 << 20
		}
		if one.Kind == "rdm" {
			if one.Rdm == nil {
				one.Rdm = &RdmConfig{}
			}
			if info, err := os.Stat(one.Rdm.Device); err == nil && one.SizeBytes == 0 {
				one.SizeBytes = info.Size() / sector * sector
			}
			text(&one.Rdm.Compatibility, "virtualMode")
			text(&one.Rdm.Lun, fmt.Sprintf("naa.6000%028x", index*64+i+1))
		}
	}
}

func (d *DatacenterConfig) firstHost() string {
	for _, one := range d.Clusters {
		if len(one.Hosts) > 0 {
			return one.Hosts[0]
		}
	}
	if len(d.Hosts) > 0 {
		return d.Hosts[0]
	}
	return ""
}

func text(field *string, value string) {
	if *field == "" {
		*field = value
	}
}

func flag(field **bool, value bool) {
	if *field == nil {
		*field = &value
	}
}
