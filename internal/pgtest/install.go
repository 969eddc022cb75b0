package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// DefaultVersion is the major version that Options mean by 0.
const DefaultVersion = 15

// ToolsDir returns the directory that scripts/install-tools fills: REPLICATOR_TOOLS_DIR, else .tools in the root of the source
// tree around the working directory, else .tools below the working directory.
func ToolsDir() string {
	if dir := os.Getenv("REPLICATOR_TOOLS_DIR"); dir != "" {
		return dir
	}
	wd, err := os.Getwd()
	if err != nil {
		return ".tools"
	}
	if root, found := sourceRoot(wd); found {
		return filepath.Join(root, ".tools")
	}
	return filepath.Join(wd, ".tools")
}

// sourceRoot returns the root of the source tree of replicator that dir lies in.
func sourceRoot(dir string) (root string, found bool) {
	for {
		if mod, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && strings.HasPrefix(string(mod), "module replicator\n") {
			return dir, true
		}
		if dir == filepath.Dir(dir) {
			return "", false
		}
		dir = filepath.Dir(dir)
	}
}

// PgDump returns the path of a pg_dump that can dump a server of the given major version: pg_dump refuses servers newer than
// itself. The file need not exist: running it then says so.
func PgDump(version int) string {
	if version <= DefaultVersion {
		return "/usr/lib/postgresql/15/bin/pg_dump"
	}
	return filepath.Join(ToolsDir(), "pg18", "bin", "pg_dump")
}

// installation returns the directory above bin/postgres of the given major version, readable by the user that will run it.
func installation(version int, as account) (string, error) {
	candidates := []string{
		fmt.Sprintf("/usr/lib/postgresql/%d", version),
		filepath.Join(ToolsDir(), "postgres", "node_modules", fmt.Sprintf("pg%d", version), "native"),
	}
	for _, dir := range candidates {
		if _, err := os.Stat(filepath.Join(dir, "bin", "postgres")); err != nil {
			continue
		}
		if as.switched && !open(dir) {
			return publish(dir, version, as)
		}
		return dir, nil
	}
	group := "versions"
	if version == DefaultVersion {
		group = "pg"
	}
	return "", fmt.Errorf("no PostgreSQL %d in %s: run scripts/install-tools %s", version, strings.Join(candidates, " or "), group)
}

// open reports whether every directory on the way to path can be entered by any user.
func open(path string) bool {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	for {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if path == filepath.Dir(path) {
			return true
		}
		path = filepath.Dir(path)
	}
}

// publish copies an installation that lies in a private directory (a clone below /root, say) to the cache.
func publish(dir string, version int, as account) (string, error) {
	cache, err := cacheDir(as)
	if err != nil {
		return "", err
	}
	key, err := buildKey(dir, version)
	if err != nil {
		return "", err
	}
	return once(cache, "install-"+key, func(work string) error {
		return copyTree(dir, work, as)
	})
}

// once makes cache/name with fill and an atomic rename; of several processes that do so at once, one wins.
func once(cache, name string, fill func(work string) error) (string, error) {
	final := filepath.Join(cache, name)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	work, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return "", fmt.Errorf("make a directory in the cache: %w", err)
	}
	defer os.RemoveAll(work)
	made := filepath.Join(work, "made")
	if err := fill(made); err != nil {
		return "", err
	}
	if err := os.Rename(made, final); err != nil && !errors.Is(err, os.ErrExist) {
		if _, present := os.Stat(final); present != nil {
			return "", fmt.Errorf("put %s into the cache: %w", name, err)
		}
	}
	return final, nil
}

// copyTree copies a directory with its modes, links and, for root, owners, then gives it to the account.
func copyTree(from, to string, as account) error {
	if out, err := exec.Command("cp", "-a", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s to %s: %w: %s", from, to, err, out)
	}
	if !as.switched {
		return nil
	}
	if info, err := os.Stat(to); err == nil && ownerOf(info) == as.uid {
		return nil
	}
	if out, err := exec.Command("chown", "-R", fmt.Sprintf("%d:%d", as.uid, as.gid), to).CombinedOutput(); err != nil {
		return fmt.Errorf("give %s to %s: %w: %s", to, as.name, err, out)
	}
	return nil
}
