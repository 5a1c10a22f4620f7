package main

import (
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Chain reads and writes a disk through its layers with the files kept open. Not safe for concurrent writers.
type Chain struct {
	layers   []*Layer
	files    []*os.File
	Capacity int64
}

func openChain(layers []*Layer, flags int) (*Chain, error) {
	c := &Chain{layers: layers, Capacity: layers[0].Capacity}
	for i, one := range layers {
		mode := os.O_RDONLY
		if i == 0 {
			mode = flags
		}
		f, err := os.OpenFile(one.data(), mode, 0)
		if err != nil {
			c.Close()
			return nil, err
		}
		c.files = append(c.files, f)
	}
	return c, nil
}

// openReader opens a chain for reading, openWriter also for writing into its first layer.
func openReader(layers []*Layer) (*Chain, error) { return openChain(layers, os.O_RDONLY) }
func openWriter(layers []*Layer) (*Chain, error) { return openChain(layers, os.O_RDWR) }

// Close closes all files.
func (c *Chain) Close() {
	for _, f := range c.files {
		f.Close()
	}
}

// has says whether a layer holds a block itself.
func (c *Chain) has(index int, number int64) (bool, error) {
	y := c.layers[index]
	if !y.mapped() {
		return true, nil
	}
	var mark [1]byte
	if number >= blocks(y.Capacity) {
		return false, nil
	}
	_, err := c.files[index].ReadAt(mark[:], y.Capacity+number)
	return mark[0] != 0, err
}

// ReadAt reads len(buffer) bytes; what no layer holds reads as zero, as does what lies beyond a smaller parent.
func (c *Chain) ReadAt(buffer []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(buffer)) > c.Capacity {
		return 0, fmt.Errorf("%d bytes at %d are not within the %d of the disk", len(buffer), at, c.Capacity)
	}
	done := 0
	for done < len(buffer) {
		here := at + int64(done)
		length := int(min64(block-here%block, int64(len(buffer)-done)))
		if err := c.readBlock(buffer[done:done+length], here); err != nil {
			return done, err
		}
		done += length
	}
	return done, nil
}

func (c *Chain) readBlock(buffer []byte, at int64) error {
	for i, y := range c.layers {
		found, err := c.has(i, at/block)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		end := min64(at+int64(len(buffer)), y.Capacity)
		n := 0
		if end > at {
			n, err = c.files[i].ReadAt(buffer[:end-at], at)
			if err != nil && err != io.EOF {
				return err
			}
		}
		clear(buffer[n:])
		return nil
	}
	clear(buffer)
	return nil
}

func clear(buffer []byte) {
	for i := range buffer {
		buffer[i] = 0
	}
}

// WriteAt writes into the first layer; where that is a delta, whole blocks are copied up first.
func (c *Chain) WriteAt(data []byte, at int64) error {
	if at < 0 || at+int64(len(data)) > c.Capacity {
		return fmt.Errorf("%d bytes at %d are not within the %d of the disk", len(data), at, c.Capacity)
	}
	if !c.layers[0].mapped() {
		_, err := c.files[0].WriteAt(data, at)
		return err
	}
	for len(data) > 0 {
		number := at / block
		length := min64(block-at%block, int64(len(data)))
		if err := c.writeBlock(number, at, data[:length]); err != nil {
			return err
		}
		data, at = data[length:], at+length
	}
	return nil
}

func (c *Chain) writeBlock(number, at int64, data []byte) error {
	found, err := c.has(0, number)
	if err != nil {
		return err
	}
	if !found {
		start := number * block
		whole := make([]byte, min64(block, c.Capacity-start))
		if _, err := c.ReadAt(whole, start); err != nil {
			return err
		}
		copy(whole[at-start:], data)
		at, data = start, whole
	}
	if _, err := c.files[0].WriteAt(data, at); err != nil {
		return err
	}
	if !found {
		_, err = c.files[0].WriteAt([]byte{1}, c.layers[0].Capacity+number)
	}
	return err
}

// Allocated calls back for each run of blocks that some layer holds, the rest reads as zero.
func (c *Chain) Allocated(found func(at, length int64) error) error {
	marks := make([]bool, blocks(c.Capacity))
	for i, y := range c.layers {
		if y.mapped() {
			bytes := make([]byte, blocks(y.Capacity))
			if _, err := c.files[i].ReadAt(bytes, y.Capacity); err != nil {
				return err
			}
			for n, mark := range bytes {
				if mark != 0 && n < len(marks) {
					marks[n] = true
				}
			}
			continue
		}
		err := eachData(c.files[i], c.Capacity, func(at, length int64) error {
			for n := at / block; n*block < at+length && n < int64(len(marks)); n++ {
				marks[n] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return runs(int64(len(marks)), c.Capacity, func(n int64) bool { return marks[n] }, found)
}

// runs joins adjacent blocks.
func runs(count, capacity int64, has func(int64) bool, found func(at, length int64) error) error {
	for n := int64(0); n < count; n++ {
		if !has(n) {
			continue
		}
		first := n
		for n+1 < count && has(n+1) {
			n++
		}
		if err := found(first*block, min64((n+1)*block, capacity)-first*block); err != nil {
			return err
		}
	}
	return nil
}

// makeDelta freezes a layer under a new delta, whose name is the next that is free.
func (l *Lab) makeDelta(parent *Layer) (*Layer, error) {
	stem := strings.TrimSuffix(parent.Path, ".vmdk")
	if at := strings.LastIndex(stem, "-"); at > 0 && len(stem)-at == 7 && parent.Parent != "" {
		stem = stem[:at]
	}
	for n := 1; ; n++ {
		name := fmt.Sprintf("%s-%06d.vmdk", stem, n)
		file, store, err := l.local(parent.Center, name)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(file); err == nil {
			continue
		}
		base := strings.TrimSuffix(path.Base(file), ".vmdk")
		y := &Layer{Center: parent.Center, Path: name, Descriptor: file, Capacity: parent.Capacity, Uuid: parent.Uuid,
			Parent: parent.Path, Kind: "VMFSSPARSE", CreateType: "vmfsSparse", ExtentName: base + "-delta.vmdk", Thin: parent.Thin}
		y.Extent = filepath.Join(filepath.Dir(file), y.ExtentName)
		if store.objects() {
			y.ExtentName = strings.ToLower(store.Type) + "://" + uuidFor("object", name, fmt.Sprint(l.unique()))
			_, id, _ := strings.Cut(y.ExtentName, "://")
			y.Extent = filepath.Join(l.folder, "objects", id)
		}
		if err := makeSparse(y.Extent, y.Capacity+blocks(y.Capacity)); err != nil {
			return nil, err
		}
		return y, y.write()
	}
}

// mergeInto writes what a delta holds into its parent. Doing it again does no harm.
func mergeInto(delta, parent *Layer) error {
	src, err := openReader([]*Layer{delta})
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := openWriter([]*Layer{parent})
	if err != nil {
		return err
	}
	defer dst.Close()
	buffer := make([]byte, 16*block)
	return src.Allocated(func(at, length int64) error {
		for length > 0 {
			n := min64(length, int64(len(buffer)))
			if _, err := src.ReadAt(buffer[:n], at); err != nil {
				return err
			}
			if err := dst.WriteAt(buffer[:n], at); err != nil {
				return err
			}
			at, length = at+n, length-n
		}
		return nil
	})
}

// removeLayer deletes the files of one layer; the content behind a raw device mapping stays.
func removeLayer(y *Layer) error {
	if err := os.Remove(y.Descriptor); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.Remove(y.Extent); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}
