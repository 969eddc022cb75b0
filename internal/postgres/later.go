package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// later are settings to pin at zero that not every supported server knows. One that doesn't would refuse the session if they stood among
// pinned, so they are set when the session has begun and its server's version is known: a round trip, and none before version 14.
var later = []struct {
	since int
	set   string
}{
	{14, "SET idle_session_timeout = 0"},
	{17, "SET transaction_timeout = 0"},
}

func pinLater(ctx context.Context, conn *pgconn.PgConn) error {
	version := major(conn.ParameterStatus("server_version"))
	var sql []string
	for _, l := range later {
		if version >= l.since {
			sql = append(sql, l.set)
		}
	}
	if len(sql) == 0 {
		return nil
	}
	if _, err := conn.Exec(ctx, strings.Join(sql, "; ")).ReadAll(); err != nil {
		return fmt.Errorf("pin the session's timeouts: %w", err)
	}
	return nil
}

// major returns the major version of a server_version, 0 if it can't be read.
func major(version string) int {
	digits := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(version)
	}
	n, err := strconv.Atoi(version[:digits])
	if err != nil {
		return 0
	}
	return n
}
