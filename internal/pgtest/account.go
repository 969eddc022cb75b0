package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the system user that runs the servers.
type account struct {
	name     string
	uid, gid uint32
	switched bool // it isn't the user of this process
}

// runAs returns the user of this process, or for root the first unprivileged one there is.
func runAs() (account, error) {
	if uid := os.Geteuid(); uid != 0 {
		return account{name: strconv.Itoa(uid), uid: uint32(uid), gid: uint32(os.Getegid())}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("read the uid of %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("read the gid of %s: %w", name, err)
		}
		return account{name: name, uid: uint32(uid), gid: uint32(gid), switched: true}, nil
	}
	return account{}, errors.New("PostgreSQL refuses to run as root and there is neither a user postgres nor nobody: run scripts/install-tools pg")
}

// attributes are those of a child that runs as the account in a process group of its own, so that a terminal's Ctrl-C reaches
// only us, and that gets PostgreSQL's immediate shutdown when the thread that started it ends.
func (a account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGQUIT}
	if a.switched {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	return attr
}

// give makes the account the owner of a path.
func (a account) give(path string) error {
	if !a.switched {
		return nil
	}
	if err := os.Chown(path, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("give %s to %s: %w", path, a.name, err)
	}
	return nil
}

// cacheDir returns this machine's cache of templates, made if need be. It refuses a directory that somebody else put there.
func cacheDir(as account) (string, error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("replicator-pgtest-%d", os.Geteuid()))
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make the cache of PostgreSQL templates: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", fmt.Errorf("look at the cache of PostgreSQL templates: %w", err)
	}
	if !info.IsDir() || ownerOf(info) != uint32(os.Geteuid()) {
		return "", fmt.Errorf("the cache %s belongs to somebody else: remove it, or set TMPDIR", dir)
	}
	if as.switched && !open(dir) {
		return "", fmt.Errorf("the user %s can't enter %s: set TMPDIR to a directory that everybody can enter", as.name, dir)
	}
	return dir, nil
}

func ownerOf(info os.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }
