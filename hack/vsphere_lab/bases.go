package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Bases: new disk files, and content taken over from others without their holes.

// diskUuid makes a disk's own: they all begin with VMware's SCSI prefix.
func diskUuid(words ...string) string { return "6000C29" + uuidFor(words...)[7:] }

// NewDisk says what base to make.
type NewDisk struct {
	Center, Path string
	Kind         string // flat, sparse, rdm
	Size         int64
	Thin         bool
	From         string // local file whose content it starts with, "" for zeros
	Uuid         string
	Rdm          *RdmConfig
}

// makeDisk makes a base: descriptor and extent. What exists is not overwritten.
func (l *Lab) makeDisk(want NewDisk) (*Layer, error) {
	file, store, err := l.local(want.Center, want.Path)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(file); err == nil {
		return nil, &os.PathError{Op: "create", Path: want.Path, Err: syscall.EEXIST}
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	if want.Size == 0 && want.From != "" {
		info, err := os.Stat(want.From)
		if err != nil {
			return nil, err
		}
		want.Size = (info.Size() + sector - 1) / sector * sector
	}
	y := &Layer{Center: want.Center, Path: want.Path, Descriptor: file, Capacity: want.Size, Thin: want.Thin,
		Uuid: want.Uuid, Kind: "VMFS", CreateType: "vmfs"}
	if y.Uuid == "" {
		y.Uuid = diskUuid(want.Center, want.Path, fmt.Sprint(l.facts.Boots), fmt.Sprint(l.unique()))
	}
	stem := strings.TrimSuffix(filepath.Base(file), ".vmdk")
	switch {
	case want.Kind == "rdm":
		y.Kind, y.CreateType, y.ExtentName = "VMFSRDM", "vmfsRawDeviceMap", stem+"-rdm.vmdk"
		if want.Rdm.Compatibility == "physicalMode" {
			y.Kind, y.CreateType, y.ExtentName = "VMFSRDMP", "vmfsPassthroughRawDeviceMap", stem+"-rdmp.vmdk"
		}
		y.Lun, y.Device = want.Rdm.Lun, want.Rdm.Device
	case want.Kind == "sparse":
		y.Kind, y.CreateType, y.ExtentName = "SESPARSE", "seSparse", stem+"-sesparse.vmdk"
	case store.objects():
		y.ExtentName = strings.ToLower(store.Type) + "://" + uuidFor("object", want.Center, want.Path, fmt.Sprint(l.unique()))
	default:
		y.ExtentName = stem + "-flat.vmdk"
	}
	if _, id, ok := strings.Cut(y.ExtentName, "://"); ok {
		y.Extent = filepath.Join(l.folder, "objects", id)
	} else {
		y.Extent = filepath.Join(filepath.Dir(file), y.ExtentName)
	}
	if err := y.fill(want.From); err != nil {
		return nil, err
	}
	return y, y.write()
}

func (y *Layer) fill(from string) error {
	if y.raw() {
		if from != "" && y.Device == "" {
			y.Device = from
		}
		if y.Device == "" {
			y.Device = filepath.Join(filepath.Dir(filepath.Dir(y.Extent)), "."+filepath.Base(y.Extent)+".lun")
			if err := makeSparse(y.Device, y.Capacity); err != nil {
				return err
			}
		}
		return os.WriteFile(y.Extent, []byte(y.Device+"\n"), 0o644)
	}
	size := y.Capacity
	if y.mapped() {
		size += blocks(y.Capacity)
	}
	if err := makeSparse(y.Extent, size); err != nil {
		return err
	}
	if from == "" {
		return nil
	}
	return y.copyFrom(from)
}

// copyFrom takes over what another file holds, its holes left out.
func (y *Layer) copyFrom(from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	if !y.mapped() {
		dst, err := os.OpenFile(y.Extent, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer dst.Close()
		return eachData(src, y.Capacity, func(at, length int64) error {
			if _, err := dst.Seek(at, 0); err != nil {
				return err
			}
			if _, err := src.Seek(at, 0); err != nil {
				return err
			}
			_, err := io.CopyN(dst, src, length)
			return err
		})
	}
	w, err := openWriter([]*Layer{y})
	if err != nil {
		return err
	}
	defer w.Close()
	buffer := make([]byte, 1<<20)
	return eachData(src, y.Capacity, func(at, length int64) error {
		for length > 0 {
			n := min64(length, int64(len(buffer)))
			if _, err := src.ReadAt(buffer[:n], at); err != nil {
				return err
			}
			if err := w.WriteAt(buffer[:n], at); err != nil {
				return err
			}
			at, length = at+n, length-n
		}
		return nil
	})
}

func makeSparse(file string, size int64) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(size)
}

// eachData calls back for each run of data (not hole) below limit.
func eachData(f *os.File, limit int64, found func(at, length int64) error) error {
	if info, err := f.Stat(); err != nil {
		return err
	} else if info.Mode().IsRegular() {
		limit = min64(limit, info.Size())
	}
	at := int64(0)
	for at < limit {
		start, err := f.Seek(at, seekData)
		if err != nil {
			if pathErr, ok := err.(*os.PathError); ok && pathErr.Err == syscall.ENXIO {
				return nil
			}
			return err
		}
		end, err := f.Seek(start, seekHole)
		if err != nil {
			return err
		}
		if start >= limit {
			return nil
		}
		if err := found(start, min64(end, limit)-start); err != nil {
			return err
		}
		at = end
	}
	return nil
}

func min64(a, b int64) int64 {
	if a < b {
		return a
	}
	return b
}
