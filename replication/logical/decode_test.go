package logical

import (
	"testing"

	"replicator/replication"
)

func FuzzDecode(f *testing.F) {
	relation := []byte("\x00\x00\x40\x01public\x00t\x00d\x00\x02\x01id\x00\x00\x00\x00\x17\xff\xff\xff\xff\x00v\x00\x00\x00\x00\x19\xff\xff\xff\xff")
	f.Add(byte('R'), relation)
	f.Add(byte('I'), []byte("\x00\x00\x40\x01N\x00\x02t\x00\x00\x00\x011n"))
	f.Add(byte('U'), []byte("\x00\x00\x40\x01K\x00\x02t\x00\x00\x00\x011nN\x00\x02t\x00\x00\x00\x012u"))
	f.Add(byte('D'), []byte("\x00\x00\x40\x01K\x00\x02t\x00\x00\x00\x011n"))
	f.Add(byte('T'), []byte("\x00\x00\x00\x01\x03\x00\x00\x40\x01"))
	f.Add(byte('Y'), []byte("\x00\x00\x40\x09public\x00mood\x00"))
	f.Add(byte('B'), make([]byte, 20))
	f.Add(byte('C'), make([]byte, 25))
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		r, err := decodeRelation(&message{data: relation})
		if err != nil {
			t.Fatal(err)
		}
		relations := map[uint32]*replication.Relation{r.OID: r}
		m := &message{data: data}
		switch kind {
		case 'B':
			_, _ = decodeBegin(m)
		case 'C':
			_, _ = decodeCommit(m)
		case 'Y':
			_, _ = decodeType(m)
		case 'R':
			if r, err := decodeRelation(m); err == nil && len(r.Columns) > len(data) {
				t.Errorf("%d columns out of %d bytes", len(r.Columns), len(data))
			}
		case 'T':
			if c, err := decodeTruncate(m, relations); err == nil && len(c.Truncated) == 0 {
				t.Error("a truncation of nothing")
			}
		case 'I', 'U', 'D':
			c, err := decodeRow(kind, m, relations, replication.NewBatch())
			if err != nil {
				return
			}
			if kind != 'D' && len(c.New) != 2 || kind == 'D' && len(c.Old) != 2 {
				t.Errorf("accepted %q without its row", kind)
			}
			for _, v := range append(c.New, c.Old...) {
				if len(v.Data) > len(data) {
					t.Error("value longer than the message")
				}
			}
		}
	})
}

func TestDecodeRowParts(t *testing.T) {
	r := &replication.Relation{OID: 1, Columns: []replication.RelationColumn{{Name: "id", Key: true}, {Name: "v"}}}
	relations := map[uint32]*replication.Relation{1: r}
	m := &message{data: []byte("\x00\x00\x00\x01K\x00\x02t\x00\x00\x00\x011nN\x00\x02t\x00\x00\x00\x012u")}
	c, err := decodeRow('U', m, relations, replication.NewBatch())
	if err != nil {
		t.Fatal(err)
	}
	if string(c.Old[0].Data) != "1" || c.Old[1].Kind != replication.Absent || string(c.New[0].Data) != "2" || c.New[1].Kind != replication.Unchanged {
		t.Errorf("decoded %+v", c)
	}
	for _, bad := range []string{
		"\x00\x00\x00\x02N\x00\x02nn",         // unknown relation
		"\x00\x00\x00\x01N\x00\x03nnn",        // too many columns
		"\x00\x00\x00\x01K\x00\x02nn",         // an update without its new row
		"\x00\x00\x00\x01N\x00\x02n",          // cut off
		"\x00\x00\x00\x01N\x00\x02nt\x7f\xff", // length cut off
		"\x00\x00\x00\x01N\x00\x02nnN\x00\x02nn",
	} {
		if _, err := decodeRow('U', &message{data: []byte(bad)}, relations, replication.NewBatch()); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
