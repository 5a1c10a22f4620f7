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
	"os"
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

// streamReader takes a stream apart and remembers where it saw what, to hold the tables against it.
type streamReader struct {
	in       *bufio.Reader
	sectors  uint32
	head     vmdkHeader
	grains   map[uint64]uint32
	tables   map[uint32][]uint32
	dir      []uint32
	dirAt    uint32
	footer   *vmdkHeader
	capacity int64
}

// readStream writes the disk that a stream-optimized VMDK holds to a file, sparse, and returns its size in bytes. Any
// other form of a disk, and a stream cut short or with tables that do not fit its grains, is an error.
func readStream(r io.Reader, out *os.File) (int64, error) {
	s := &streamReader{in: bufio.NewReaderSize(r, 1<<20), grains: map[uint64]uint32{}, tables: map[uint32][]uint32{}}
	if err := s.opening(); err != nil {
		return 0, err
	}
	if err := out.Truncate(0); err != nil {
		return 0, err
	}
	if err := out.Truncate(s.capacity); err != nil {
		return 0, err
	}
	if err := s.body(out); err != nil {
		return 0, err
	}
	return s.capacity, s.consistent()
}

func (s *streamReader) sector() ([]byte, error) {
	raw := make([]byte, sectorBytes)
	if _, err := io.ReadFull(s.in, raw); err != nil {
		return nil, fmt.Errorf("the stream ends in sector %d without an end marker: %w", s.sectors, err)
	}
	s.sectors++
	return raw, nil
}

func (s *streamReader) opening() error {
	raw := make([]byte, sectorBytes)
	if n, err := io.ReadFull(s.in, raw); err != nil {
		return &notAStream{fmt.Sprintf("%d bytes are too few for a header", n)}
	}
	s.sectors = 1
	head, err := parseHeader(raw)
	if err != nil {
		return err
	}
	switch {
	case head.Flags&flagCompressed == 0 || head.Flags&flagMarkers == 0 || head.Compression != 1:
		return &notAStream{"a sparse extent that is not compressed with markers"}
	case head.Version < 3:
		return &notAStream{fmt.Sprintf("version %d, a stream has 3", head.Version)}
	case head.Grain != grainSectors || head.TableEntries != tableEntries:
		return &notAStream{fmt.Sprintf("grains of %d sectors, %d to a table", head.Grain, head.TableEntries)}
	case head.Capacity == 0 || head.Capacity > 62<<31 || head.Overhead == 0 || head.Overhead > 1<<24:
		return &notAStream{"its sizes make no sense"}
	}
	s.head, s.capacity = *head, int64(head.Capacity)*sectorBytes
	for s.sectors < uint32(head.Overhead) {
		if _, err := s.sector(); err != nil {
			return err
		}
	}
	return nil
}

func parseHeader(raw []byte) (*vmdkHeader, error) {
	var head vmdkHeader
	if err := binary.Read(bytes.NewReader(raw), binary.LittleEndian, &head); err != nil {
		return nil, err
	}
	if head.Magic != vmdkMagic {
		return nil, &notAStream{"no VMDK header (a flat file?)"}
	}
	return &head, nil
}

func (s *streamReader) body(out *os.File) error {
	for {
		at := s.sectors
		raw, err := s.sector()
		if err != nil {
			return err
		}
		value, size, kind := binary.LittleEndian.Uint64(raw), binary.LittleEndian.Uint32(raw[8:]), binary.LittleEndian.Uint32(raw[12:])
		if size > 0 {
			if err := s.grain(out, at, value, size, raw[12:]); err != nil {
				return err
			}
			continue
		}
		if kind == markerEnd {
			return s.ending()
		}
		if err := s.metadata(kind, value); err != nil {
			return err
		}
	}
}

// ending takes padding behind the end marker, as qemu-img leaves it, and nothing else.
func (s *streamReader) ending() error {
	padding := make([]byte, grainBytes)
	for {
		n, err := s.in.Read(padding)
		if !allZero(padding[:n]) {
			return errors.New("there are bytes behind the end marker")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *streamReader) grain(out *os.File, at uint32, lba uint64, size uint32, first []byte) error {
	if lba%grainSectors != 0 || lba >= s.head.Capacity || size > 2*grainBytes {
		return fmt.Errorf("sector %d: a grain of %d bytes for sector %d of %d", at, size, lba, s.head.Capacity)
	}
	if _, twice := s.grains[lba]; twice {
		return fmt.Errorf("sector %d: the grain of sector %d comes twice", at, lba)
	}
	s.grains[lba] = at
	packed := append([]byte(nil), first...)
	for uint32(len(packed)) < size {
		more, err := s.sector()
		if err != nil {
			return err
		}
		packed = append(packed, more...)
	}
	inflate, err := zlib.NewReader(bytes.NewReader(packed[:size]))
	if err != nil {
		return fmt.Errorf("sector %d: %w", at, err)
	}
	plain, err := io.ReadAll(io.LimitReader(inflate, grainBytes+1))
	if err != nil {
		return fmt.Errorf("sector %d: %w", at, err)
	}
	room := min64(grainBytes, s.capacity-int64(lba)*sectorBytes)
	if int64(len(plain)) < room || len(plain) > grainBytes {
		return fmt.Errorf("sector %d: a grain inflates to %d bytes", at, len(plain))
	}
	if allZero(plain) {
		return nil
	}
	_, err = out.WriteAt(plain[:room], int64(lba)*sectorBytes)
	return err
}

func (s *streamReader) metadata(kind uint32, sectors uint64) error {
	at := s.sectors
	if sectors > 1<<20 {
		return fmt.Errorf("sector %d: a marker of kind %d claims %d sectors", at-1, kind, sectors)
	}
	var raw []byte
	for i := uint64(0); i < sectors; i++ {
		more, err := s.sector()
		if err != nil {
			return err
		}
		raw = append(raw, more...)
	}
	words := make([]uint32, len(raw)/4)
	for i := range words {
		words[i] = binary.LittleEndian.Uint32(raw[4*i:])
	}
	switch kind {
	case markerTable:
		s.tables[at] = words
	case markerDirectory:
		s.dir, s.dirAt = words, at
	case markerFooter:
		head, err := parseHeader(raw)
		if err != nil {
			return fmt.Errorf("sector %d: the footer: %w", at, err)
		}
		s.footer = head
	default:
		return fmt.Errorf("sector %d: a marker of unknown kind %d", at-1, kind)
	}
	return nil
}

// consistent holds the tables at the end against the grains that came. A stream that keeps its tables at the front was
// made by a writer that can seek; those tables are skipped unread.
func (s *streamReader) consistent() error {
	if s.head.Directory != directoryAtEnd {
		return nil
	}
	if s.footer == nil || s.footer.Directory != uint64(s.dirAt) || s.footer.Capacity != s.head.Capacity {
		return errors.New("the footer is missing or does not point to the grain directory")
	}
	named := 0
	for i := int64(0); i*tableEntries*grainBytes < s.capacity; i++ {
		if i >= int64(len(s.dir)) {
			return fmt.Errorf("the grain directory ends at entry %d", i)
		}
		if s.dir[i] == noTable {
			continue
		}
		table, found := s.tables[s.dir[i]]
		if !found || len(table) < tableEntries {
			return fmt.Errorf("directory entry %d names sector %d, where no whole grain table is", i, s.dir[i])
		}
		for j, at := range table[:tableEntries] {
			lba := uint64(i*tableEntries+int64(j)) * grainSectors
			if at > 1 && s.grains[lba] != at {
				return fmt.Errorf("a grain table places sector %d at %d, it came at %d", lba, at, s.grains[lba])
			}
			if at > 1 {
				named++
			}
		}
	}
	if named != len(s.grains) {
		return fmt.Errorf("%d grains came, the tables name %d", len(s.grains), named)
	}
	return nil
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
