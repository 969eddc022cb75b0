package redissync

import (
	"strings"
	"testing"

	"replicator/internal/redistest"
)

func TestRebuildMakesEqualValues(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	everyType(r.a, "0")
	r.a.lines(`
		XADD pending 1-1 a 1
		XADD pending 2-1 b 2
		XADD pending 3-1 c 3
		XGROUP CREATE pending g 0
		XGROUP CREATE pending other 2-1
		XGROUP CREATECONSUMER pending other idle
		XREADGROUP GROUP g alice COUNT 2 STREAMS pending >
		XREADGROUP GROUP g bob COUNT 1 STREAMS pending >
		XREADGROUP GROUP g alice COUNT 2 STREAMS pending 0
		XDEL pending 2-1
		XTRIM pending MAXLEN 1
		XGROUP CREATE hollow g $ MKSTREAM
		XADD trimmed 1-1 a 1
		XADD trimmed 2-1 a 2
		XADD trimmed 3-1 a 3
		XGROUP CREATE trimmed g 0
		XREADGROUP GROUP g alice COUNT 3 STREAMS trimmed >
		XTRIM trimmed MAXLEN 1
		XADD trimmedaway 1-1 a 1
		XGROUP CREATE trimmedaway g 0
		XREADGROUP GROUP g alice COUNT 3 STREAMS trimmedaway >
		XTRIM trimmedaway MAXLEN 0
		XADD emptied 5-5 a 1
		XDEL emptied 5-5
	`)
	ctx := r.ctx()
	f := newFlow(New(r.o), false, true)
	f.destSeen.version = 70015
	r.b.lines("SET hash wrongtype\nSET gone 1")
	for k := range contents(t, r.a) {
		if err := f.rebuild(ctx, r.a.s, r.b.s, 70015, k, 0); err != nil {
			t.Fatalf("%v: %v", k, err)
		}
	}
	if err := f.rebuild(ctx, r.a.s, r.b.s, 70015, keyID{0, "gone"}, 0); err != nil {
		t.Fatal(err)
	}
	r.equal()
	for k := range contents(t, r.a) {
		a, err := decode(ctx, r.a.s, k.db, k.key, 70015, false)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := decode(ctx, r.b.s, k.db, k.key, 70015, false); a.digest != b.digest || err != nil {
			t.Errorf("%v differs after decoding, %v", k, err)
		}
	}
}

func TestDowngradedPayloadsAreTaken(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	r.a.lines("SET plain value\nHSET hash a b")
	for _, k := range []string{"plain", "hash"} {
		payload := r.a.do("DUMP", k).str
		if want := payload[len(payload)-8:]; string(appendCRC(payload[:len(payload)-8])) != want {
			t.Fatalf("checksum of %s differs from the server's", k)
		}
		// As if a newer server had made it.
		newer := payload[:len(payload)-10] + "\x0c\x00"
		newer += string(appendCRC(newer))
		if _, err := r.b.try("RESTORE", k, "0", newer); err == nil || !badPayload(err) {
			t.Fatalf("the payload of a newer version: %v", err)
		}
		older, ok := downgrade(newer)
		if !ok || len(older) == 0 {
			t.Fatal("no older form")
		}
		var err error
		for _, p := range older {
			if _, err = r.b.try("RESTORE", k, "0", p); err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("%s: no older form is taken: %v", k, err)
		}
	}
	r.equal()
	if _, ok := downgrade(strings.Repeat("\xff", 20)); ok {
		t.Error("an unknown type was given an older form")
	}
}

func appendCRC(s string) []byte {
	c := crc64([]byte(s))
	out := make([]byte, 8)
	for i := range out {
		out[i] = byte(c >> (8 * i))
	}
	return out
}
