package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// bucardo is a Bucardo 5 installation (Debian package bucardo) with its control database on the target server and one sync.
type bucardo struct {
	r       *rival
	dir     string
	account *syscall.Credential
	session int // of its daemon's processes, 0 while it doesn't run
}

// bucardo makes a rival of which Bucardo replicates all tables. Both sides are loaded and alike; its daemon is stopped.
func (d *bed) bucardo(name string) *rival {
	d.b.Helper()
	r := d.rival(name)
	d.load(r.copyURL)
	c := &bucardo{r: r, dir: filepath.Join(filepath.Dir(d.target.DataDir()), "bucardo")}
	// It trusts a Unix socket, and runs as whoever runs the server.
	info, err := os.Stat(d.target.DataDir())
	if err != nil {
		d.b.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	if int(owner.Uid) != os.Geteuid() {
		c.account = &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
	}
	for _, dir := range []string{c.dir, filepath.Join(c.dir, "pid"), filepath.Join(c.dir, "log")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			d.b.Fatal(err)
		}
		if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
			d.b.Fatal(err)
		}
	}
	c.command("install", "--batch", "--piddir="+filepath.Join(c.dir, "pid"))
	for setting, file := range map[string]string{"reason_file": "reason", "log_conflict_file": "conflict", "warning_file": "warning"} {
		c.command("set", setting+"="+filepath.Join(c.dir, file))
	}
	for side, s := range map[string]struct {
		host string
		port int
	}{"origin": {d.source.SocketDir(), d.source.Port()}, "copy": {d.target.SocketDir(), d.target.Port()}} {
		c.command("add", "db", side, "dbname="+r.db, "dbhost="+s.host, fmt.Sprintf("dbport=%d", s.port), "dbuser=postgres")
	}
	c.command(append([]string{"add", "table", "db=origin", "relgroup=everything"}, r.tables()...)...)
	c.command("add", "dbgroup", "both", "origin:source", "copy:target")
	c.command("add", "sync", "all", "relgroup=everything", "dbs=both", "onetimecopy=0")
	r.logged = `n.nspname = 'bucardo' AND (c.relname LIKE 'delta\_%' OR c.relname LIKE 'track\_%')`
	r.reads, r.writes = "bucardo KID%", "bucardo KID%"
	r.start, r.stop = c.start, c.stop
	r.daemon = c.processes
	d.b.Cleanup(func() {
		if c.session != 0 {
			_ = syscall.Kill(-c.session, syscall.SIGKILL) // it may have ended
		}
	})
	return r
}

// command runs the client bucardo to its end.
func (c *bucardo) command(args ...string) {
	c.r.b.Helper()
	w := c.r.world
	cmd := exec.CommandContext(w.b.Context(), "bucardo", append(args, "--no-bucardorc", "--db-host="+w.target.SocketDir(), fmt.Sprintf("--db-port=%d", w.target.Port()),
		"--db-user=postgres", "--db-name=bucardo")...)
	cmd.Dir, cmd.Env = c.dir, []string{"HOME=" + c.dir, "PATH=" + os.Getenv("PATH"), "PGBINDIR=" + filepath.Dir(tool(w.b, "psql"))}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.account}
	// The daemon keeps what it inherits: a pipe would never end.
	out, err := os.Create(filepath.Join(w.b.TempDir(), "bucardo.out"))
	if err != nil {
		w.b.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	on(w.b, targetCore, func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		said, _ := os.ReadFile(out.Name()) // the error is told anyway
		w.b.Fatalf("bucardo %s (scripts/install-tools pg bucardo): %v\n%s", strings.Join(args, " "), err, said)
	}
}

func (c *bucardo) start() {
	b := c.r.b
	b.Helper()
	c.command("start", "--logdest="+filepath.Join(c.dir, "log"))
	file := filepath.Join(c.dir, "pid", "bucardo.mcp.pid")
	until(b, "daemon of Bucardo", time.Minute, func() bool {
		text, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		first, _, _ := bytes.Cut(text, []byte("\n"))
		pid, err := strconv.Atoi(string(bytes.TrimSpace(first)))
		if err != nil {
			return false
		}
		c.session = syscallSession(pid)
		return c.session > 0
	})
}

// syscallSession is the session of a process, 0 if it is gone.
func syscallSession(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	n, _ := strconv.Atoi(f[3]) // the kernel writes numbers
	return n
}

func (c *bucardo) processes() []int {
	session := strconv.Itoa(c.session)
	return offspring(func(f []string) bool { return f[3] == session && f[0] != "Z" })
}

func (c *bucardo) stop() {
	c.r.b.Helper()
	if c.session == 0 {
		return
	}
	c.command("stop", "measured")
	until(c.r.b, "end of Bucardo's daemon", 2*time.Minute, func() bool { return len(c.processes()) == 0 })
	c.session = 0
}
