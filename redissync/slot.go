package redissync

import (
	"strconv"
	"strings"
	"sync"
)

// slotCount is the number of a cluster's hash slots.
const slotCount = 16384

// slotOf is the hash slot of a key: CRC16 of what stands between the first { and the next }, or of all of it (Redis documentation,
// "Redis cluster specification", key distribution model).
func slotOf(key string) int {
	if i := strings.IndexByte(key, '{'); i >= 0 {
		if n := strings.IndexByte(key[i+1:], '}'); n > 0 {
			key = key[i+1 : i+1+n]
		}
	}
	var c uint16
	for i := range len(key) {
		c = c<<8 ^ crc16Table[byte(c>>8)^key[i]]
	}
	return int(c) % slotCount
}

// crc16Table is of CRC-16/XMODEM.
var crc16Table = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i) << 8
		for range 8 {
			if c&0x8000 != 0 {
				c = c<<1 ^ 0x1021
			} else {
				c <<= 1
			}
		}
		t[i] = c
	}
	return t
}()

// slotTags holds a short text for every slot that hashes to it.
var slotTags = sync.OnceValue(func() *[slotCount]string {
	var tags [slotCount]string
	for i, left := 0, slotCount; left > 0; i++ {
		tag := strconv.FormatInt(int64(i), 36)
		if s := slotOf(tag); tags[s] == "" {
			tags[s] = tag
			left--
		}
	}
	return &tags
})

// keyOf is the key of one of the commands that we use, by which it finds its node; empty if it concerns the server as a whole.
func keyOf(cmd []string) string {
	switch cmd[0] {
	case "PING", "INFO", "TIME", "SCAN", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "FUNCTION", "MULTI", "EXEC", "SELECT", "RANDOMKEY", "ACL", "DBSIZE":
		return ""
	case "MEMORY":
		return cmd[len(cmd)-1]
	}
	if len(cmd) < 2 {
		return ""
	}
	return cmd[1]
}
