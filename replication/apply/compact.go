package apply

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"

	"replicator/replication"
)

// effect is the net effect of a batch on one row.
type effect byte

const (
	inserted effect = iota + 1
	updated
	deleted
	replaced // deleted, then another row inserted under the same key
	vanished // inserted and deleted again
)

// row is one row's net effect. values are its final values; key is the identity it has on the destination.
type row struct {
	effect effect
	key    []replication.Value
	values []replication.Value
}

// segment is a run of one table's changes that is carried out as sets; a change that can't be is a segment of its own, in row.
type segment struct {
	plan *plan
	rows []row
	// index finds rows by the hash of their keys; where two keys share one, the later has the next free number.
	index map[uint64]int32
	// ordered holds changes to be carried out one by one instead.
	ordered []replication.Change
}

// compactor turns the changes of a batch into segments, table by table, in an order that keeps each table's own order.
type compactor struct {
	segments []*segment
	open     map[replication.TableName]*segment
	scratch  []byte
}

func newCompactor() *compactor {
	return &compactor{open: map[replication.TableName]*segment{}}
}

// add takes the next change. It returns false where the changes contradict each other (an insert of a key that is there, say); the
// batch must then be carried out in order, which tells what is wrong.
func (c *compactor) add(p *plan, ch replication.Change) bool {
	if ch.Op == replication.Truncate {
		clear(c.open) // a barrier for every table
		c.segments = append(c.segments, &segment{plan: p, ordered: []replication.Change{ch}})
		return true
	}
	key := ch.Old
	if key == nil {
		key = ch.New
	}
	s := c.open[p.rel.Name]
	if len(p.key) == 0 && ch.Op == replication.Insert {
		if s == nil || s.plan != p || s.ordered != nil {
			s = &segment{plan: p}
			c.start(s)
		}
		s.rows = append(s.rows, row{effect: inserted, values: ch.New})
		return true
	}
	if len(p.key) == 0 || (ch.Op == replication.Update && ch.Old != nil && p.keyChanged(ch)) {
		if s == nil || s.plan != p || s.ordered == nil {
			s = &segment{plan: p}
			c.start(s)
		}
		s.ordered = append(s.ordered, ch)
		return true
	}
	if s == nil || s.plan != p || s.ordered != nil {
		s = &segment{plan: p, index: map[uint64]int32{}}
		c.start(s)
	}
	c.scratch = p.appendKey(c.scratch[:0], key)
	hash := maphash.Bytes(hashSeed, c.scratch)
	at, known := s.index[hash]
	for known && !p.sameKey(s.rows[at].key, key) {
		hash++
		at, known = s.index[hash]
	}
	if !known {
		s.index[hash] = int32(len(s.rows))
		r := row{key: key, values: ch.New}
		switch ch.Op {
		case replication.Insert:
			r.effect = inserted
		case replication.Update:
			r.effect = updated
		case replication.Delete:
			r.effect = deleted
		}
		s.rows = append(s.rows, r)
		return true
	}
	return s.rows[at].merge(ch)
}

// hashSeed makes the hashes of this process differ from everybody else's, so that nobody can choose keys that share one.
var hashSeed = maphash.MakeSeed()

func (c *compactor) start(s *segment) {
	c.open[s.plan.rel.Name] = s
	c.segments = append(c.segments, s)
}

// replaceUpdates turns updates into replacements where all values are known.
func (s *segment) replaceUpdates() {
	for i := range s.rows {
		r := &s.rows[i]
		if r.effect == updated && !slices.ContainsFunc(r.values, func(v replication.Value) bool { return v.Kind == replication.Unchanged }) {
			r.effect = replaced
		}
	}
}

// merge adds a later change of the same row; false where it can't follow what was there.
func (r *row) merge(ch replication.Change) bool {
	there := r.effect == inserted || r.effect == updated || r.effect == replaced
	switch ch.Op {
	case replication.Insert:
		if there {
			return false
		}
		r.values = ch.New
		if r.effect == deleted {
			r.effect = replaced
		} else {
			r.effect = inserted
		}
	case replication.Update:
		if !there {
			return false
		}
		for i := range ch.New {
			if ch.New[i].Kind == replication.Unchanged {
				ch.New[i] = r.values[i] // may itself be unchanged, for an updated row
			}
		}
		r.values = ch.New
	case replication.Delete:
		switch {
		case !there:
			return false
		case r.effect == inserted:
			r.effect = vanished
		default:
			r.effect = deleted
		}
		r.values = nil
	default:
		return false
	}
	return true
}

// keyChanged tells whether an update gives the row another key.
func (p *plan) keyChanged(ch replication.Change) bool {
	for _, i := range p.key {
		o, n := ch.Old[i], ch.New[i]
		if n.Kind != replication.Unchanged && (o.Kind != n.Kind || string(o.Data) != string(n.Data)) {
			return true
		}
	}
	return false
}

// appendKey appends a form of the key's values that differs wherever they do.
func (p *plan) appendKey(b []byte, values []replication.Value) []byte {
	for _, i := range p.key {
		v := values[i]
		b = append(b, byte(v.Kind))
		b = binary.BigEndian.AppendUint32(b, uint32(len(v.Data)))
		b = append(b, v.Data...)
	}
	return b
}

// sameKey tells whether two rows' keys are the same bytes.
func (p *plan) sameKey(a, b []replication.Value) bool {
	for _, i := range p.key {
		if a[i].Kind != b[i].Kind || !bytes.Equal(a[i].Data, b[i].Data) {
			return false
		}
	}
	return true
}

// compareKeys orders rows by key, shorter values first, so that numbers come in the order of their index.
func (p *plan) compareKeys(a, b *row) int {
	for _, i := range p.key {
		x, y := a.key[i].Data, b.key[i].Data
		if len(x) != len(y) {
			return len(x) - len(y)
		}
		if d := bytes.Compare(x, y); d != 0 {
			return d
		}
	}
	return 0
}

// ranked is a row with a number that orders short keys as compareKeys does; rows of the same number are told apart by compareKeys.
type ranked struct {
	rank uint64
	row  int32
}

// sorted returns the rows, given by their indexes, in the order of their keys; rows without a key stay as they are.
func (s *segment) sorted(which []int32) []int32 {
	if len(s.plan.key) == 0 {
		return which
	}
	first := s.plan.key[0]
	all := make([]ranked, len(which))
	for n, i := range which {
		data := s.rows[i].key[first].Data
		var head [8]byte
		copy(head[1:], data)
		head[0] = byte(min(len(data), 255))
		all[n] = ranked{binary.BigEndian.Uint64(head[:]), i}
	}
	slices.SortFunc(all, func(a, b ranked) int {
		if a.rank != b.rank {
			return cmp.Compare(a.rank, b.rank)
		}
		return cmp.Or(s.plan.compareKeys(&s.rows[a.row], &s.rows[b.row]), cmp.Compare(a.row, b.row))
	})
	for n := range all {
		which[n] = all[n].row
	}
	return which
}
