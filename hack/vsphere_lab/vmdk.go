package main

// Stream-optimized VMDK, the only form of a disk that a lease sends and takes: a header, a descriptor, then compressed
// grains each behind a marker that names its sector, and the tables at the end, so that both ends need no seek.

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand"
	"path"
)

const (
	sectorBytes  = 512
	grainSectors = 128
	grainBytes   = grainSectors * sectorBytes
	tableEntries = 512
	// Where the grains begin, in sectors: the header, the descriptor, and air up to a grain's length.
	streamOverhead   = 128
	descriptorLength = 20
	directoryAtEnd   = math.MaxUint64

	vmdkMagic       = 0x564d444b
	flagNewlines    = 1 << 0
	flagCompressed  = 1 << 16
	flagMarkers     = 1 << 17
	markerEnd       = 0
	markerTable     = 1
	markerDirectory = 2
	markerFooter    = 3
	// A table that no grain needs is not written.
	noTable = 0
)

// vmdkHeader is the first sector of a sparse extent, and the footer of a stream.
type vmdkHeader struct {
	Magic, Version, Flags                                uint32
	Capacity, Grain, DescriptorOffset, DescriptorSectors uint64
	TableEntries                                         uint32
	Redundant, Directory, Overhead                       uint64
	Unclean                                              uint8
	Newlines                                             [4]byte
	Compression                                          uint16
	Rest                                                 [433]byte
}

// notAStream is the answer to a body that is some other form of a disk.
type notAStream struct{ reason string }

func (e *notAStream) Error() string { return "not a stream-optimized VMDK: " + e.reason }

// streamWriter counts sectors, as the tables point with them.
type streamWriter struct {
	out     *bufio.Writer
	sectors uint32
}

func (s *streamWriter) padded(parts ...[]byte) error {
	length := 0
	for _, part := range parts {
		if _, err := s.out.Write(part); err != nil {
			return err
		}
		length += len(part)
	}
	whole := (length + sectorBytes - 1) / sectorBytes
	_, err := s.out.Write(make([]byte, whole*sectorBytes-length))
	s.sectors += uint32(whole)
	return err
}

func (s *streamWriter) marker(sectors uint64, kind uint32) error {
	head := make([]byte, 16)
	binary.LittleEndian.PutUint64(head, sectors)
	binary.LittleEndian.PutUint32(head[12:], kind)
	return s.padded(head)
}

func (s *streamWriter) header(directory uint64, capacity int64) error {
	var raw bytes.Buffer
	head := vmdkHeader{
		Magic: vmdkMagic, Version: 3, Flags: flagNewlines | flagCompressed | flagMarkers,
		Capacity: uint64(capacity / sectorBytes), Grain: grainSectors, DescriptorOffset: 1, DescriptorSectors: descriptorLength,
		TableEntries: tableEntries, Directory: directory, Overhead: streamOverhead, Newlines: [4]byte{'\n', ' ', '\r', '\n'},
		Compression: 1,
	}
	if err := binary.Write(&raw, binary.LittleEndian, head); err != nil {
		return err
	}
	return s.padded(raw.Bytes())
}

func streamDescriptor(capacity int64, name string) []byte {
	sectors := capacity / sectorBytes
	text := fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=%08x
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RDONLY %d SPARSE "%s"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.virtualHWVersion = "13"
`, rand.Uint32()&^1, sectors, path.Base(name), sectors/(255*63))
	return append([]byte(text), make([]byte, descriptorLength*sectorBytes-len(text))...)
}

// frozen is what a stream is made from: Chain is one.
type frozen interface {
	io.ReaderAt
	Allocated(found func(at, length int64) error) error
}

// writeStream sends a disk of so many bytes as a stream-optimized VMDK. Grains of zeros are left out.
func writeStream(w io.Writer, disk frozen, capacity int64, name string) error {
	if capacity <= 0 || capacity%sectorBytes != 0 {
		return fmt.Errorf("a disk of %d bytes is no whole number of sectors", capacity)
	}
	s := &streamWriter{out: bufio.NewWriterSize(w, 1<<20)}
	if err := s.header(directoryAtEnd, capacity); err != nil {
		return err
	}
	if err := s.padded(streamDescriptor(capacity, name)); err != nil {
		return err
	}
	if err := s.padded(make([]byte, (streamOverhead-1-descriptorLength)*sectorBytes)); err != nil {
		return err
	}
	tables, err := s.grains(disk, capacity)
	if err != nil {
		return err
	}
	if err := s.marker(uint64((len(tables)*4+sectorBytes-1)/sectorBytes), markerDirectory); err != nil {
		return err
	}
	directory := uint64(s.sectors)
	if err := s.padded(littleWords(tables)); err != nil {
		return err
	}
	if err := s.marker(1, markerFooter); err != nil {
		return err
	}
	if err := s.header(directory, capacity); err != nil {
		return err
	}
	if err := s.marker(0, markerEnd); err != nil {
		return err
	}
	return s.out.Flush()
}

// grains sends the content, each table behind its grains, and returns where the tables are.
func (s *streamWriter) grains(disk frozen, capacity int64) ([]uint32, error) {
	var tables []uint32
	used := make([]bool, (capacity+grainBytes-1)/grainBytes)
	err := disk.Allocated(func(at, length int64) error {
		for n := at / grainBytes; n*grainBytes < at+length && n < int64(len(used)); n++ {
			used[n] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	grain, packed := make([]byte, grainBytes), new(bytes.Buffer)
	squeeze, err := zlib.NewWriterLevel(packed, zlib.BestSpeed)
	if err != nil {
		return nil, err
	}
	for start := int64(0); start < capacity; start += tableEntries * grainBytes {
		table, filled := make([]uint32, tableEntries), false
		for i := range table {
			offset := start + int64(i)*grainBytes
			if offset >= capacity {
				break
			}
			if !used[offset/grainBytes] {
				continue
			}
			length := min64(grainBytes, capacity-offset)
			if _, err := disk.ReadAt(grain[:length], offset); err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
			clear(grain[length:])
			if allZero(grain) {
				continue
			}
			packed.Reset()
			squeeze.Reset(packed)
			if _, err := squeeze.Write(grain); err != nil {
				return nil, err
			}
			if err := squeeze.Close(); err != nil {
				return nil, err
			}
			table[i], filled = s.sectors, true
			head := make([]byte, 12)
			binary.LittleEndian.PutUint64(head, uint64(offset/sectorBytes))
			binary.LittleEndian.PutUint32(head[8:], uint32(packed.Len()))
			if err := s.padded(head, packed.Bytes()); err != nil {
				return nil, err
			}
		}
		if !filled {
			tables = append(tables, noTable)
			continue
		}
		if err := s.marker(tableEntries*4/sectorBytes, markerTable); err != nil {
			return nil, err
		}
		tables = append(tables, s.sectors)
		if err := s.padded(littleWords(table)); err != nil {
			return nil, err
		}
	}
	return tables, nil
}

func littleWords(words []uint32) []byte {
	raw := make([]byte, 4*len(words))
	for i, word := range words {
		binary.LittleEndian.PutUint32(raw[4*i:], word)
	}
	return raw
}

var zeroGrain = make([]byte, grainBytes)

func allZero(block []byte) bool {
	for len(block) > 0 {
		n := len(block)
		if n > grainBytes {
			n = grainBytes
		}
		if !bytes.Equal(block[:n], zeroGrain[:n]) {
			return false
		}
		block = block[n:]
	}
	return true
}
