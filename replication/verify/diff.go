package verify

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

const (
	// bucketRows is how many rows share a bucket on average; maxBuckets bounds the memory for their sums, 32 MB for both sides.
	bucketRows = 512
	maxBuckets = 1 << 20
	// fetchRows bounds the rows that one pass over the table fetches from unequal buckets.
	fetchRows = 100_000
)

// bucketSums are one side's buckets: rows and folded sums.
type bucketSums struct{ rows, sums []int64 }

// member is a distinct row of a bucket.
type member struct {
	key          string
	hash1, hash2 int64
}

// diff lists at most limit differing rows. It makes one pass for the buckets and as many as the limit asks for to fetch the
// unequal ones.
func (c comparison) diff(ctx context.Context, pair [2]*pgx.Conn, limit int) (found []Difference, truncated bool, err error) {
	var rows int64
	for i, conn := range pair {
		var n int64
		if err := conn.QueryRow(ctx, "SELECT count(*) FROM ONLY "+c.table.Name.Quoted()).Scan(&n); err != nil {
			return nil, false, explain(err, sideNames[i], c.table.Name)
		}
		rows = max(rows, n)
	}
	n := int64(1)
	for n < maxBuckets && n*bucketRows < rows {
		n *= 2
	}
	unequal, sizes, err := c.unequalBuckets(ctx, pair, n)
	if err != nil {
		return nil, false, err
	}
	for len(unequal) > 0 {
		take, size := 0, int64(0)
		for take < len(unequal) && (take == 0 || (take < limit && size+sizes[unequal[take]] <= fetchRows)) {
			size += sizes[unequal[take]]
			take++
		}
		more, err := c.compareMembers(ctx, pair, n-1, unequal[:take])
		if err != nil {
			return nil, false, err
		}
		found, unequal = append(found, more...), unequal[take:]
		if len(found) >= limit {
			truncated = len(unequal) > 0 || len(found) > limit
			break
		}
	}
	slices.SortFunc(found, func(a, b Difference) int {
		return cmp.Or(cmp.Compare(len(a.Key), len(b.Key)), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Kind, b.Kind))
	})
	return found[:min(len(found), limit)], truncated, nil
}

var sideNames = [2]string{"source", "target"}

// unequalBuckets returns the buckets that differ and the rows in each bucket.
func (c comparison) unequalBuckets(ctx context.Context, pair [2]*pgx.Conn, n int64) (unequal, sizes []int64, err error) {
	var sides [2]bucketSums
	g, ctx := errgroup.WithContext(ctx)
	for i, conn := range pair {
		b := bucketSums{make([]int64, n), make([]int64, n)}
		sides[i] = b
		g.Go(func() error {
			rows, err := conn.Query(ctx, c.buckets(n-1))
			if err != nil {
				return explain(err, sideNames[i], c.table.Name)
			}
			var bucket, count, sum int64
			_, err = pgx.ForEachRow(rows, []any{&bucket, &count, &sum}, func() error {
				b.rows[bucket], b.sums[bucket] = count, sum
				return nil
			})
			if err != nil {
				return explain(err, sideNames[i], c.table.Name)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	sizes = make([]int64, n)
	for b := range n {
		sizes[b] = max(sides[0].rows[b], sides[1].rows[b])
		if sides[0].rows[b] != sides[1].rows[b] || sides[0].sums[b] != sides[1].sums[b] {
			unequal = append(unequal, b)
		}
	}
	return unequal, sizes, nil
}

// compareMembers fetches some buckets from both sides and tells the rows apart.
func (c comparison) compareMembers(ctx context.Context, pair [2]*pgx.Conn, mask int64, buckets []int64) ([]Difference, error) {
	surplus := map[member]int64{} // on the source, negative on the target
	for i, conn := range pair {
		rows, err := conn.Query(ctx, c.members(mask, buckets))
		if err != nil {
			return nil, explain(err, sideNames[i], c.table.Name)
		}
		var m member
		var count int64
		_, err = pgx.ForEachRow(rows, []any{&m.key, &m.hash1, &m.hash2, &count}, func() error {
			if i == 1 {
				count = -count
			}
			if surplus[m] += count; surplus[m] == 0 {
				delete(surplus, m)
			}
			return nil
		})
		if err != nil {
			return nil, explain(err, sideNames[i], c.table.Name)
		}
	}
	if len(c.table.Key) == 0 {
		return keyless(surplus), nil
	}
	kinds := map[string]Kind{}
	for m, n := range surplus {
		kind := Missing
		if n < 0 {
			kind = Extra
		}
		if old, seen := kinds[m.key]; seen && old != kind {
			kind = Different
		}
		kinds[m.key] = kind
	}
	out := make([]Difference, 0, len(kinds))
	for key, kind := range kinds {
		out = append(out, Difference{kind, key})
	}
	return out, nil
}

func keyless(surplus map[member]int64) []Difference {
	out := make([]Difference, 0, len(surplus))
	for m, n := range surplus {
		kind := Missing
		if n < 0 {
			kind, n = Extra, -n
		}
		out = append(out, Difference{kind, fmt.Sprintf("row hash %016x, %d time(s)", uint64(m.hash1), n)})
	}
	return out
}
