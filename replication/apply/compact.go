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
	hash   uint32
	key    []replication.Value
	values []replication.Value
}

// segment is a run of one table's changes that is carried out as sets, or one by one in ordered.
type segment struct {
	plan *plan
	rows []row
	index
	// ordered holds changes to be carried out one by one instead.
	ordered []replication.Change
}

// compactor turns the changes of a batch into segments, table by table, in an order that keeps each table's own order.
type compactor struct {
	segments []*segment
	open     map[replication.TableName]*segment
	// last is the plan of the open segment that took the last change, which most often takes the next.
	last *segment
}

func newCompactor() *compactor {
	return &compactor{open: map[replication.TableName]*segment{}}
}

// add takes the next change. It returns false where the changes contradict each other (an insert of a key that is there, say); the
// batch must then be carried out in order, which tells what is wrong.
func (c *compactor) add(p *plan, ch *replication.Change) bool {
	if ch.Op == replication.Truncate {
		clear(c.open) // a barrier for every table
		c.last = nil
		c.segments = append(c.segments, &segment{plan: p, ordered: []replication.Change{*ch}})
		return true
	}
	key := ch.Old
	if key == nil {
		key = ch.New
	}
	s := c.last
	if s == nil || s.plan != p {
		s = c.open[p.rel.Name]
		c.last = s
	}
	if len(p.key) == 0 && ch.Op == replication.Insert {
		if s == nil || s.plan != p || s.ordered != nil {
			s = c.start(p)
		}
		s.rows = append(s.rows, row{effect: inserted, values: ch.New})
		return true
	}
	if len(p.key) == 0 || (ch.Op == replication.Update && ch.Old != nil && p.keyChanged(ch)) {
		if s == nil || s.plan != p || s.ordered == nil {
			s = c.start(p)
		}
		s.ordered = append(s.ordered, *ch)
		return true
	}
	if s == nil || s.plan != p || s.ordered != nil {
		s = c.start(p)
	}
	hash := p.hash(key)
	at := s.find(s, hash, key)
	if at >= 0 {
		return s.rows[at].merge(ch)
	}
	r := row{hash: hash, key: key, values: ch.New}
	switch ch.Op {
	case replication.Insert:
		r.effect = inserted
	case replication.Update:
		r.effect = updated
	case replication.Delete:
		r.effect = deleted
	default:
		return false
	}
	s.rows = append(s.rows, r)
	s.index.add(s.rows)
	return true
}

// start opens another segment of the table.
func (c *compactor) start(p *plan) *segment {
	s := p.spare
	if s == nil {
		s = &segment{plan: p}
	}
	p.spare = nil
	c.open[p.rel.Name], c.last = s, s
	c.segments = append(c.segments, s)
	return s
}

// done gives the segments' memory back to their plans.
func (c *compactor) done() {
	for _, s := range c.segments {
		s.forget(s.rows)
		clear(s.rows)
		s.rows, s.ordered = s.rows[:0], nil
		s.plan.spare = s
	}
	c.segments = nil
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
func (r *row) merge(ch *replication.Change) bool {
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
func (p *plan) keyChanged(ch *replication.Change) bool {
	for _, i := range p.key {
		o, n := ch.Old[i], ch.New[i]
		if n.Kind != replication.Unchanged && (o.Kind != n.Kind || string(o.Data) != string(n.Data)) {
			return true
		}
	}
	return false
}

// hashSeed makes the hashes of this process differ from everybody else's, so that nobody can choose keys that share one.
var hashSeed = maphash.MakeSeed()

// hash is the same for the same key.
func (p *plan) hash(values []replication.Value) uint32 {
	var h uint64
	for _, i := range p.key {
		h = (h*31 + maphash.Bytes(hashSeed, values[i].Data)) * 0x9e3779b97f4a7c15
	}
	return uint32(h >> 32)
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

// index finds the rows of a segment by key: a table of row numbers, from 1 on, in which rows of one hash follow each other. Its length is a
// power of two and at least twice the number of rows.
type index struct{ slots []int32 }

// find returns the number of the row with that key, -1 if there is none.
func (x *index) find(s *segment, hash uint32, key []replication.Value) int {
	if len(x.slots) == 0 {
		return -1
	}
	mask := uint32(len(x.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		n := x.slots[i]
		if n == 0 {
			return -1
		}
		if r := &s.rows[n-1]; r.hash == hash && s.plan.sameKey(r.key, key) {
			return int(n - 1)
		}
	}
}

// add enters the last of the rows.
func (x *index) add(rows []row) {
	from := len(rows) - 1
	if 2*len(rows) > len(x.slots) {
		x.slots, from = make([]int32, max(64, 2*len(x.slots))), 0
	}
	mask := uint32(len(x.slots) - 1)
	for n := from; n < len(rows); n++ {
		i := rows[n].hash & mask
		for x.slots[i] != 0 {
			i = (i + 1) & mask
		}
		x.slots[i] = int32(n + 1)
	}
}

// forget empties the index of these rows.
func (x *index) forget(rows []row) {
	if len(rows) > len(x.slots)/16 {
		clear(x.slots)
		return
	}
	if len(x.slots) == 0 {
		return
	}
	mask := uint32(len(x.slots) - 1)
	for n := range rows {
		i := rows[n].hash & mask
		for x.slots[i] != int32(n+1) {
			i = (i + 1) & mask
		}
		x.slots[i] = 0
	}
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

// ranked is a row with a number that orders keys as compareKeys does, or, for whole numbers, as their index does; rows of the same number
// are told apart by compareKeys.
type ranked struct {
	rank uint64
	row  int32
}

// sorted returns the rows, given by their indexes, in the order of their keys; rows without a key stay as they are.
func (s *segment) sorted(which []int32) []int32 {
	if len(s.plan.key) == 0 || len(which) < 2 {
		return which
	}
	first := s.plan.key[0]
	number := s.plan.elements[first].integer
	all := make([]ranked, 2*len(which))
	all, other := all[:len(which)], all[len(which):]
	inOrder := true
	for n, i := range which {
		data := s.rows[i].key[first].Data
		if v, ok := integer(data, 64); number && ok {
			all[n] = ranked{uint64(v) ^ 1<<63, i}
		} else {
			var head [8]byte
			copy(head[1:], data)
			head[0] = byte(min(len(data), 255))
			all[n] = ranked{binary.BigEndian.Uint64(head[:]), i}
		}
		inOrder = inOrder && (n == 0 || all[n-1].rank < all[n].rank)
	}
	if inOrder {
		return which
	}
	all = radix(all, other)
	for from := 0; from < len(all); {
		to := from + 1
		for to < len(all) && all[to].rank == all[from].rank {
			to++
		}
		if to-from > 1 {
			slices.SortFunc(all[from:to], func(a, b ranked) int {
				return cmp.Or(s.plan.compareKeys(&s.rows[a.row], &s.rows[b.row]), cmp.Compare(a.row, b.row))
			})
		}
		from = to
	}
	for n := range all {
		which[n] = all[n].row
	}
	return which
}

// radix sorts by rank, a byte at a time, the lowest first; bytes that all ranks share are passed over. other is as long as all; the result is one
// of both.
func radix(all, other []ranked) []ranked {
	var differ uint64
	for i := range all {
		differ |= all[i].rank ^ all[0].rank
	}
	for shift := 0; shift < 64; shift += 8 {
		if differ>>shift&0xff == 0 {
			continue
		}
		var at [257]int
		for i := range all {
			at[all[i].rank>>shift&0xff+1]++
		}
		for i := 1; i < len(at); i++ {
			at[i] += at[i-1]
		}
		for i := range all {
			k := all[i].rank >> shift & 0xff
			other[at[k]] = all[i]
			at[k]++
		}
		all, other = other, all
	}
	return all
}
