//go:build !linux

package postgres

import "syscall"

// bound has no portable meaning; keepalive alone notices a cut here.
func bound(string, string, syscall.RawConn) error { return nil }
