package redissync

import "encoding/binary"

// newestType is the highest RDB type byte of a value that each RDB version knows (rdb.h of the Redis source).
var newestType = []struct {
	version uint16
	kind    byte
}{{12, 25}, {11, 21}, {10, 19}, {9, 15}}

// From RDB version 80 on, Valkey numbers for itself; up to type 21 its forms are those of Redis.
const (
	valkeyRDB  = 80
	sharedType = 21
)

// downgrade returns the payload with the footers of older RDB versions, newest first, as far as such a version knows the type of
// the value: the bodies are the same then.
func downgrade(payload string) ([]string, bool) {
	if len(payload) < 11 {
		return nil, false
	}
	body := payload[:len(payload)-10]
	now := binary.LittleEndian.Uint16([]byte(payload[len(payload)-10:]))
	if now >= valkeyRDB && payload[0] > sharedType {
		return nil, false // Redis 7.4 means another form by the same type byte
	}
	var out []string
	for _, t := range newestType {
		if t.version >= now || payload[0] > t.kind {
			continue
		}
		b := binary.LittleEndian.AppendUint16([]byte(body), t.version)
		out = append(out, string(binary.LittleEndian.AppendUint64(b, crc64(b))))
	}
	return out, len(out) > 0
}

// crcTable is of the Jones polynomial, reflected, without the inversions of hash/crc64 (crc64.c of the Redis source).
var crcTable = func() (t [256]uint64) {
	for i := range t {
		c := uint64(i)
		for range 8 {
			if c&1 == 1 {
				c = c>>1 ^ 0x95ac9329ac4bc9b5
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

func crc64(b []byte) (c uint64) {
	for _, x := range b {
		c = crcTable[byte(c)^x] ^ c>>8
	}
	return c
}
