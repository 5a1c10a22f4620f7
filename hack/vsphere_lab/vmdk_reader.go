package main

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

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
