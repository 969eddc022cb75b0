package redissync

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"replicator/internal/preflight"
)

// syncFunctions gives the destination the origin's function libraries where they differ. It goes by their source (Redis 7.0, "FUNCTION LIST"
// WITHCODE), which every version reads, unlike FUNCTION DUMP's payload. A library that the destination can't load is an error.
func (f *flow) syncFunctions(ctx context.Context, origin *session) error {
	here, err := libraries(ctx, origin) // a cluster's primaries are meant to have the same
	if err != nil {
		return fmt.Errorf("read the functions of the %s: %w", f.origin.name, err)
	}
	destination := &session{endpoint: f.destination.endpoint, name: f.pair.o.connectionName(f.role("functions"))}
	defer destination.close()
	return destination.everyNode(ctx, func(s *session) error { return f.putLibraries(ctx, s, here) })
}

// putLibraries gives one server of the destination the libraries of the origin.
func (f *flow) putLibraries(ctx context.Context, s *session, here map[string]string) error {
	there, err := libraries(ctx, s)
	if err != nil {
		return fmt.Errorf("read the functions of the %s: %w", f.destination.name, err)
	}
	if there == nil && len(here) > 0 {
		return &preflight.Hinted{Code: "redis-functions", Err: fmt.Errorf("the %s has %d function libraries, which the %s doesn't know", f.origin.name, len(here), f.destination.name),
			Hint: "take a server of Redis 7.0 or newer, or Valkey; or remove them with FUNCTION FLUSH"}
	}
	for _, name := range slices.Sorted(maps.Keys(there)) {
		if _, ok := here[name]; ok || here == nil {
			continue
		}
		if _, err := s.do(ctx, "FUNCTION", "DELETE", name); err != nil {
			return fmt.Errorf("remove function library %q from the %s: %w", name, f.destination.name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(here)) {
		if there[name] == here[name] {
			continue
		}
		if _, err := s.do(ctx, "FUNCTION", "LOAD", "REPLACE", here[name]); err != nil {
			return fmt.Errorf("carry function library %q over to the %s: %w", name, f.destination.name, err)
		}
	}
	return nil
}

// libraries are the source texts of a server's function libraries by name; nil if it knows no functions or doesn't let us see them, which
// check names.
func libraries(ctx context.Context, s *session) (map[string]string, error) {
	v, err := s.do(ctx, "FUNCTION", "LIST", "WITHCODE")
	if err != nil {
		if isReplyError(err) {
			return nil, nil
		}
		return nil, err
	}
	out := make(map[string]string, len(v.items))
	for _, l := range v.items {
		name, _ := l.field("library_name")
		code, _ := l.field("library_code")
		out[name.str] = code.str
	}
	return out, nil
}
