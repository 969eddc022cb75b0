package redissync

import (
	"context"
	"fmt"
)

// syncFunctions gives the destination the origin's functions where they differ (Redis 7.0, "FUNCTION DUMP" and "FUNCTION RESTORE").
func (f *flow) syncFunctions(ctx context.Context, origin *session) error {
	f.mu.Lock()
	version := f.originInfo.version
	f.mu.Unlock()
	if version < 70000 {
		return nil
	}
	here, err := origin.do(ctx, "FUNCTION", "DUMP")
	if err != nil {
		if isReplyError(err) {
			f.log.Warn("functions are not carried over", "error", err)
			return nil
		}
		return err
	}
	destination := &session{endpoint: f.destination.endpoint, name: f.pair.o.connectionName(f.role("functions"))}
	defer destination.close()
	there, err := destination.do(ctx, "FUNCTION", "DUMP")
	if err != nil {
		if isReplyError(err) {
			return nil
		}
		return err
	}
	if (content{payload: here.str}).body() == (content{payload: there.str}).body() {
		return nil
	}
	if _, err := destination.do(ctx, "FUNCTION", "RESTORE", here.str, "FLUSH"); err != nil {
		return fmt.Errorf("carry the functions over: %w", err)
	}
	return nil
}
