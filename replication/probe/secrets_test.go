package probe

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/preflight"
)

// A real password, in a URL or a keyword string, shows in no finding, whatever goes wrong.
func TestNoSecretInFindings(t *testing.T) {
	s := pgtest.Shared(t)
	dst := s.Database(t)
	u, err := url.Parse(s.HerokuOwner(t, s.Database(t)))
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, s.URL("postgres"), fmt.Sprintf("ALTER ROLE %q PASSWORD 's3cret x'", u.User.Username()))
	u.User = url.UserPassword(u.User.Username(), "s3cret x")
	keyword := fmt.Sprintf("host=%s port=%s user=%s password='s3cret x' dbname=", u.Hostname(), u.Port(), u.User.Username())
	for _, source := range []string{u.String(), keyword + "nowhere", keyword + "x sslmode=verify-full", "postgres://u:s3cret%20x@[::1", keyword + "x port=1"} {
		for _, f := range Run(t.Context(), options(source, dst)) {
			if strings.Contains(f.Message+f.Hint, "s3cret") {
				t.Errorf("%s shows the password: %s (%s)", f.Code, f.Message, f.Hint)
			}
		}
	}
}

// A context that ends leaves findings, and they aren't OK.
func TestRunEndsWithItsContext(t *testing.T) {
	s := pgtest.Shared(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	findings := Run(ctx, options(s.Database(t), s.Database(t)))
	if preflight.Worst(findings) != preflight.Error {
		t.Errorf("%+v", findings)
	}
}
