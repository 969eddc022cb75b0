package pgtest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Password is the password of the superuser postgres. TCP sessions authenticate by SCRAM, so that a wrong password is refused as
// it would be in earnest; the Unix socket trusts.
const Password = "postgres"

var initdbArguments = []string{
	"--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync",
}

// template returns a data directory fresh from initdb, made once per machine, build and arguments.
func template(install string, version int, as account) (string, error) {
	cache, err := cacheDir(as)
	if err != nil {
		return "", err
	}
	key, err := buildKey(install, version)
	if err != nil {
		return "", err
	}
	return once(cache, "template-"+key, func(work string) error {
		// work lies in a directory of ours that only we may write to: the account needs it as its own and enterable.
		if err := os.Chmod(filepath.Dir(work), 0o755); err != nil {
			return fmt.Errorf("open the directory for initdb: %w", err)
		}
		if err := os.Mkdir(work, 0o700); err != nil {
			return fmt.Errorf("make the directory for initdb: %w", err)
		}
		if err := as.give(work); err != nil {
			return err
		}
		password := filepath.Join(filepath.Dir(work), "password")
		if err := os.WriteFile(password, []byte(Password+"\n"), 0o644); err != nil {
			return fmt.Errorf("write initdb's password file: %w", err)
		}
		cmd := exec.Command(filepath.Join(install, "bin", "initdb"), append(initdbArguments, "--pwfile="+password, "-D", work)...)
		cmd.Dir = "/"
		cmd.Env = environment()
		cmd.SysProcAttr = as.attributes()
		cmd.SysProcAttr.Pdeathsig = 0 // the thread that starts initdb isn't held; it ends by itself within seconds
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("run initdb of PostgreSQL %d: %w\n%s", version, err, out)
		}
		// Only initdb of PostgreSQL 14 and later takes a verifier, which is longer than 99 characters, from its password file.
		stored, err := verifier(Password)
		if err != nil {
			return err
		}
		alone := exec.Command(filepath.Join(install, "bin", "postgres"), "--single", "-D", work, "postgres")
		alone.Dir, alone.Env, alone.SysProcAttr = cmd.Dir, cmd.Env, as.attributes()
		alone.SysProcAttr.Pdeathsig = 0
		alone.Stdin = strings.NewReader("ALTER ROLE postgres PASSWORD " + literal(stored) + "\n")
		out, err := alone.CombinedOutput()
		if err == nil && strings.Contains(string(out), "ERROR") {
			err = errors.New("refused")
		}
		if err != nil {
			return fmt.Errorf("set the password of PostgreSQL %d: %w\n%s", version, err, out)
		}
		conf, err := os.OpenFile(filepath.Join(work, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("open the template's postgresql.conf: %w", err)
		}
		defer conf.Close()
		if _, err := conf.WriteString("\ninclude_if_exists = '" + settingsFile + "'\n"); err != nil {
			return fmt.Errorf("write the template's postgresql.conf: %w", err)
		}
		return nil
	})
}

// buildKey names a build of PostgreSQL together with how its template is made.
func buildKey(install string, version int) (string, error) {
	out, err := exec.Command(filepath.Join(install, "bin", "postgres"), "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask PostgreSQL %d for its version: %w", version, err)
	}
	sum := sha256.Sum256([]byte(install + "\x00" + string(out) + strings.Join(initdbArguments, "\x00") + "verifier"))
	return fmt.Sprintf("%d-%s", version, hex.EncodeToString(sum[:6])), nil
}

// environment is what servers and initdb see of ours: nothing that could change their messages, zones or libraries.
func environment() []string {
	return []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC", "HOME=/nonexistent"}
}
