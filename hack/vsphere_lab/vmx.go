package main

import (
	"fmt"
	"path"
	"sort"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// vmx writes a machine as the text of its configuration file; readVmx makes a machine from one.
func (l *Lab) vmx(m *Machine) string {
	c := m.Config
	var b strings.Builder
	put := func(key string, value interface{}) { fmt.Fprintf(&b, "%s = \"%v\"\n", key, value) }
	b.WriteString(".encoding = \"UTF-8\"\n")
	put("config.version", 8)
	put("virtualHW.version", strings.TrimPrefix(c.Version, "vmx-"))
	put("displayName", c.Name)
	put("guestOS", c.GuestId)
	put("firmware", c.Firmware)
	put("nvram", path.Base(l.nvramPath(m)))
	put("uuid.bios", spacedUuid(c.Uuid))
	put("vc.uuid", spacedUuid(c.InstanceUuid))
	put("memSize", c.Hardware.MemoryMB)
	put("numvcpus", c.Hardware.NumCPU)
	put("cpuid.coresPerSocket", c.Hardware.NumCoresPerSocket)
	put("ctkEnabled", strings.ToUpper(fmt.Sprint(m.tracking())))
	if c.Annotation != "" {
		put("annotation", strings.ReplaceAll(c.Annotation, "\n", "|0A"))
	}
	for _, device := range c.Hardware.Device {
		l.vmxDevice(m, device, put)
	}
	for _, one := range c.ExtraConfig {
		option := one.GetOptionValue()
		put(option.Key, option.Value)
	}
	return b.String()
}

func (l *Lab) vmxDevice(m *Machine, device types.BaseVirtualDevice, put func(string, interface{})) {
	if bus := busOf(device); bus != nil && bus.Name != "ide" {
		name := fmt.Sprintf("%s%d", bus.Name, device.(types.BaseVirtualController).GetVirtualController().BusNumber)
		put(name+".present", "TRUE")
		if scsi, ok := device.(types.BaseVirtualSCSIController); ok {
			put(name+".virtualDev", scsiKind(device))
			if shared := scsi.GetVirtualSCSIController().SharedBus; shared != "" && shared != "noSharing" {
				put(name+".sharedBus", strings.TrimSuffix(string(shared), "Sharing"))
			}
		}
		return
	}
	if card, ok := device.(types.BaseVirtualEthernetCard); ok {
		own := card.GetVirtualEthernetCard()
		name := fmt.Sprintf("ethernet%d", own.Key-4000)
		put(name+".present", "TRUE")
		put(name+".virtualDev", strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", device), "*types.Virtual")))
		put(name+".addressType", "vpx")
		put(name+".generatedAddress", own.MacAddress)
		return
	}
	disk, ok := device.(*types.VirtualDisk)
	if !ok {
		return
	}
	slot, b := slotOf(m.Config, disk), backingOf(disk)
	if slot == "" || b == nil {
		return
	}
	_, own, _ := splitPath(m.Config.Files.VmPathName)
	store, file, _ := splitPath(*b.FileName)
	ownStore, _, _ := splitPath(m.Config.Files.VmPathName)
	name := path.Base(file)
	if store != ownStore || path.Dir(file) != path.Dir(own) {
		name = "/vmfs/volumes/" + store + "/" + file
	}
	put(slot+".present", "TRUE")
	put(slot+".deviceType", "scsi-hardDisk")
	put(slot+".fileName", name)
	if *b.Mode != "persistent" {
		put(slot+".mode", strings.ReplaceAll(*b.Mode, "_", "-"))
	}
	if *b.Sharing == "sharingMultiWriter" {
		put(slot+".sharing", "multi-writer")
	}
	if m.tracking() {
		put(slot+".ctkEnabled", "TRUE")
	}
}

func scsiKind(device types.BaseVirtualDevice) string {
	switch device.(type) {
	case *types.VirtualLsiLogicController:
		return "lsilogic"
	case *types.VirtualLsiLogicSASController:
		return "lsisas1068"
	case *types.VirtualBusLogicController:
		return "buslogic"
	}
	return "pvscsi"
}

// readVmx takes a configuration file into a machine that is placed nowhere yet; its disks must be there.
func (l *Lab) readVmx(m *Machine, text, store, folder string) error {
	values := map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		key, value, ok := strings.Cut(line, "=")
		if ok && !strings.HasPrefix(line, "#") {
			values[strings.ToLower(strings.TrimSpace(key))] = strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	if len(values) == 0 {
		return fmt.Errorf("it holds no settings")
	}
	c := m.Config
	set := func(field *string, key string) {
		if value := values[strings.ToLower(key)]; value != "" {
			*field = value
		}
	}
	set(&c.Name, "displayName")
	set(&c.GuestId, "guestOS")
	c.GuestFullName = c.GuestId
	set(&c.Firmware, "firmware")
	set(&c.Annotation, "annotation")
	c.Annotation = strings.ReplaceAll(c.Annotation, "|0A", "\n")
	if id := values["uuid.bios"]; id != "" {
		c.Uuid = plainUuid(id)
	}
	if id := values["vc.uuid"]; id != "" {
		c.InstanceUuid = plainUuid(id)
	}
	if version := values["virtualhw.version"]; version != "" {
		c.Version = "vmx-" + version
	}
	if n, err := strconv.Atoi(values["memsize"]); err == nil {
		c.Hardware.MemoryMB = int32(n)
	}
	if n, err := strconv.Atoi(values["numvcpus"]); err == nil {
		c.Hardware.NumCPU = int32(n)
	}
	c.ChangeTrackingEnabled = types.NewBool(strings.EqualFold(values["ctkenabled"], "TRUE"))
	return l.readVmxDisks(m, values, store, folder)
}

func (l *Lab) readVmxDisks(m *Machine, values map[string]string, store, folder string) error {
	keys := make([]string, 0, len(values))
	for key := range values {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		if name := strings.TrimSuffix(key, ".virtualdev"); name != key && strings.HasPrefix(name, "ethernet") {
			m.addCard(values[key], values[name+".address"]+values[name+".generatedaddress"])
			continue
		}
		slot := strings.TrimSuffix(key, ".filename")
		if slot == key || !strings.HasSuffix(values[key], ".vmdk") || strings.EqualFold(values[slot+".present"], "FALSE") {
			continue
		}
		file := parentPath(store, folder+"/x", values[key])
		layer, err := l.layer(m.Center, file)
		if err != nil {
			return fmt.Errorf("%s: %w", slot, err)
		}
		bus, _, _ := strings.Cut(slot, ":")
		sharing := "noSharing"
		if shared := values[bus+".sharedbus"]; shared != "" && shared != "none" {
			sharing = shared + "Sharing"
		}
		controller, unit, err := m.controllerFor(slot, sharing)
		if err != nil {
			return err
		}
		mode := strings.ReplaceAll(values[slot+".mode"], "-", "_")
		if mode == "" {
			mode = "persistent"
		}
		writers := "sharingNone"
		if values[slot+".sharing"] == "multi-writer" {
			writers = "sharingMultiWriter"
		}
		disk := diskOn(layer, controller, unit, fmt.Sprintf("Hard disk %d", m.nextLabel()), mode, writers)
		m.Config.Hardware.Device = append(m.Config.Hardware.Device, disk)
		if err := l.track(m, disk, layer); err != nil {
			return err
		}
	}
	return nil
}

// addCard gives a machine a network card of the kind that its vmx names.
func (m *Machine) addCard(kind, mac string) {
	var key int32
	for key = 4000; m.device(key) != nil; key++ {
	}
	card := types.VirtualEthernetCard{MacAddress: mac, AddressType: "assigned", VirtualDevice: types.VirtualDevice{
		Key: key, ControllerKey: 100,
		DeviceInfo: &types.Description{Label: fmt.Sprintf("Network adapter %d", key-3999), Summary: "VM Network"},
		Backing: &types.VirtualEthernetCardNetworkBackingInfo{
			VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: "VM Network"}}}}
	var device types.BaseVirtualDevice = &types.VirtualE1000{VirtualEthernetCard: card}
	switch kind {
	case "vmxnet3":
		device = &types.VirtualVmxnet3{VirtualVmxnet: types.VirtualVmxnet{VirtualEthernetCard: card}}
	case "e1000e":
		device = &types.VirtualE1000e{VirtualEthernetCard: card}
	}
	m.Config.Hardware.Device = append(m.Config.Hardware.Device, device)
}
