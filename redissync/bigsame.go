package redissync

import (
	"context"
	"errors"
	"strconv"
	"time"
)

// lengths are those of both sides' values.
func lengths(ctx context.Context, from, to *bigValue) (here, there int64, err error) {
	if here, err = from.length(ctx); err == nil {
		there, err = to.length(ctx)
	}
	return here, there, err
}

// surplus hands to f what the destination's value has and the origin's doesn't, piece by piece, if by their lengths there can be anything at
// all; it tells whether there was. Of types with an order by place it only compares the lengths.
func surplus(ctx context.Context, from, to *bigValue, here, there int64, f func(extra []element) (enough bool, err error)) (bool, error) {
	// Expired fields may still be counted, so that equal lengths prove nothing.
	if here == there && !from.expiry && !to.expiry || there == 0 {
		return false, nil
	}
	if from.kind == "string" || from.kind == "list" {
		return there > here, nil
	}
	found := false
	for cursor := "0"; ; {
		p, err := to.read(ctx, cursor)
		if err != nil {
			return found, err
		}
		extra, err := absentees(ctx, from, p)
		if err != nil {
			return found, err
		}
		if len(extra) > 0 {
			found = true
			if enough, err := f(extra); enough || err != nil {
				return found, err
			}
		}
		if cursor = p.next; cursor == "0" {
			return found, nil
		}
		if to.kind == "zset" { // those that follow have moved up
			cursor = strconv.FormatInt(p.at+to.count-int64(len(extra)), 10)
		}
	}
}

// absentees returns those elements of a destination's piece that the origin doesn't have, whatever their values.
func absentees(ctx context.Context, from *bigValue, p piece) ([]element, error) {
	if len(p.elements) == 0 {
		return nil, nil
	}
	v, err := from.lookup(ctx, p.elements)
	if err != nil {
		return nil, err
	}
	var out []element
	for i, e := range p.elements {
		if v[i].null || from.kind == "set" && v[i].num == 0 {
			out = append(out, e)
		}
	}
	return out, nil
}

// sameBig compares a big key's value and expiry piece by piece and says how it differs; ok is false if its type can't be taken apart.
func sameBig(ctx context.Context, origin, destination *session, here, there serverInfo, db int, key string, size int64, offset, tolerance time.Duration) (kind string, ok bool, err error) {
	a, err := stand(ctx, origin, here.version, db, key)
	if err != nil {
		return "", false, err
	}
	b, err := stand(ctx, destination, there.version, db, key)
	if err != nil {
		return "", false, err
	}
	switch {
	case a.kind == "none" && b.kind == "none":
		return "", true, nil
	case a.kind == "none":
		return "extra", true, nil
	case b.kind == "none":
		return "missing", true, nil
	case a.kind != b.kind:
		return "different", true, nil
	case !divisible(a.kind):
		return "", false, nil
	}
	from, err := openBig(ctx, origin, db, key, a.kind, size)
	if err == nil {
		var same bool
		if same, err = sameValue(ctx, from, &bigValue{s: destination, db: db, key: key, kind: a.kind, count: from.count, timed: from.timed}, offset, tolerance); err == nil && !same {
			kind = "different"
		}
	}
	switch {
	case errors.Is(err, errMoved):
		return "different", true, nil
	case err != nil:
		return "", true, err
	case kind == "" && !near(expiryThere(content{expires: a.expires}, offset), b.expires, tolerance):
		kind = "expiry"
	}
	return kind, true, nil
}

func sameValue(ctx context.Context, from, to *bigValue, offset, tolerance time.Duration) (bool, error) {
	there := func(e int64) int64 { return expiryThere(content{expires: e}, offset) }
	same := true
	err := from.each(ctx, func(p piece) (bool, error) {
		elements, err := to.same(ctx, p, there, func(a, b int64) bool { return near(a, b, tolerance) })
		for _, ok := range elements {
			same = same && ok
		}
		return !same, err
	})
	if err != nil || !same {
		return false, err
	}
	n, m, err := lengths(ctx, from, to)
	if err != nil || n != m && !from.expiry && !to.expiry {
		return false, err
	}
	extra, err := surplus(ctx, from, to, n, m, func([]element) (bool, error) { return true, nil })
	return !extra, err
}
