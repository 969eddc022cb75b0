package replication

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Snapshot is a pg_snapshot: 64-bit transaction ids ("Transaction ID and Snapshot Information Functions").
type Snapshot struct {
	Xmin, Xmax uint64
	Xip        []uint64 // sorted
}

// ParseSnapshot reads pg_current_snapshot()'s text form, xmin:xmax:xip,xip,….
func ParseSnapshot(s string) (Snapshot, error) {
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return Snapshot{}, fmt.Errorf("parse snapshot %q: not of the form xmin:xmax:xip-list", s)
	}
	var out Snapshot
	var err error
	if out.Xmin, err = strconv.ParseUint(parts[0], 10, 64); err != nil {
		return Snapshot{}, fmt.Errorf("parse snapshot %q: %w", s, err)
	}
	if out.Xmax, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return Snapshot{}, fmt.Errorf("parse snapshot %q: %w", s, err)
	}
	if parts[2] != "" {
		for f := range strings.SplitSeq(parts[2], ",") {
			x, err := strconv.ParseUint(f, 10, 64)
			if err != nil {
				return Snapshot{}, fmt.Errorf("parse snapshot %q: %w", s, err)
			}
			out.Xip = append(out.Xip, x)
		}
	}
	slices.Sort(out.Xip)
	if out.Xmin == 0 || out.Xmax < out.Xmin {
		return Snapshot{}, fmt.Errorf("parse snapshot %q: xmax before xmin", s)
	}
	return out, nil
}

// String returns the text form that ParseSnapshot reads.
func (s Snapshot) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:%d:", s.Xmin, s.Xmax)
	for i, x := range s.Xip {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(x, 10))
	}
	return b.String()
}

// Sees tells whether the effects of the committed transaction xid are visible in the snapshot.
func (s Snapshot) Sees(xid uint64) bool {
	if xid < s.Xmin {
		return true
	}
	if xid >= s.Xmax {
		return false
	}
	_, running := slices.BinarySearch(s.Xip, xid)
	return !running
}

// Widen returns the 64-bit id of a 32-bit transaction id that lies within 2^31 of the snapshot's xmax, as every id does that a
// stream near the snapshot carries.
func (s Snapshot) Widen(xid uint32) uint64 {
	d := int64(int32(xid - uint32(s.Xmax)))
	w := int64(s.Xmax) + d
	if w < 0 {
		return uint64(xid)
	}
	return uint64(w)
}
