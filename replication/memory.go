package replication

import (
	"sync"
	"sync/atomic"
)

// Chunk is a stretch of memory that tuples lie in. Its reader and every batch that refers to it hold it; once the last of them has let go it
// is used again.
type Chunk struct {
	Bytes []byte
	holds atomic.Int32
}

// ChunkSize is the size of the chunks that are used again.
const ChunkSize = 256 << 10

const valuesSize = 4096

var (
	chunks  = sync.Pool{New: func() any { return &Chunk{Bytes: make([]byte, ChunkSize)} }}
	values  = sync.Pool{New: func() any { return new([valuesSize]Value) }}
	batches = sync.Pool{New: func() any { return &Batch{} }}
)

// NewChunk returns a chunk of at least size bytes, held by the caller.
func NewChunk(size int) *Chunk {
	c := &Chunk{}
	if size <= ChunkSize {
		c = chunks.Get().(*Chunk)
	} else {
		c.Bytes = make([]byte, size)
	}
	c.holds.Store(1)
	return c
}

// Release lets go of the chunk.
func (c *Chunk) Release() {
	if c.holds.Add(-1) != 0 {
		return
	}
	if poison {
		for i := range c.Bytes {
			c.Bytes[i] = 0xdb
		}
	}
	if len(c.Bytes) == ChunkSize {
		chunks.Put(c)
	}
}

// memory is what a batch's values lie in.
type memory struct {
	chunks []*Chunk
	held   int // bytes of the chunks
	// own is the chunk that Keep fills, which the batch alone holds, up to used.
	own  *Chunk
	used int
	// The last block of values is filled up to full.
	blocks []*[valuesSize]Value
	full   int
	// shared memory is never used again.
	shared bool
}

// Held is the size of the chunks that the batch refers to, in bytes. It bounds what values take that fill their chunks sparsely.
func (b *Batch) Held() int { return b.held }

// Hold keeps the chunk, in which values of the batch lie, until Release.
func (b *Batch) Hold(c *Chunk) {
	if n := len(b.chunks); n > 0 && b.chunks[n-1] == c {
		return
	}
	c.holds.Add(1)
	b.chunks = append(b.chunks, c)
	b.held += len(c.Bytes)
}

// Keep copies data into the batch's own memory and returns the copy.
func (b *Batch) Keep(data []byte) []byte {
	if b.own == nil || len(data) > len(b.own.Bytes)-b.used {
		if len(data) > ChunkSize/4 {
			// A large value gets its own memory, so that it doesn't waste the rest of a chunk.
			b.Bytes += len(data)
			return append([]byte(nil), data...)
		}
		b.own, b.used = NewChunk(0), 0
		b.chunks = append(b.chunks, b.own)
		b.held += len(b.own.Bytes)
	}
	at := b.used
	b.used += copy(b.own.Bytes[at:], data)
	b.Bytes += len(data)
	return b.own.Bytes[at:b.used:b.used]
}

// Values returns a slice of n zero values out of the batch's own memory.
func (b *Batch) Values(n int) []Value {
	b.Bytes += n * 32
	if n > valuesSize {
		return make([]Value, n)
	}
	if len(b.blocks) == 0 || n > valuesSize-b.full {
		b.blocks, b.full = append(b.blocks, values.Get().(*[valuesSize]Value)), 0
	}
	at := b.full
	b.full += n
	out := b.blocks[len(b.blocks)-1][at:b.full:b.full]
	clear(out)
	return out
}

// Split moves the changes from number at on to a batch of their own, whose values stay where they are; chunk is the first of b's chunks
// that they may lie in, as Chunks told before the first of them came. Both batches have to be released.
func (b *Batch) Split(at, chunk int) *Batch {
	tail := NewBatch()
	for _, c := range b.chunks[max(min(chunk, len(b.chunks))-1, 0):] {
		tail.Hold(c)
	}
	for _, c := range b.Changes[at:] {
		c.Old, c.New = tail.again(c.Old), tail.again(c.New)
		tail.Changes = append(tail.Changes, c)
	}
	b.Changes = b.Changes[:at]
	return tail
}

// Join moves a later batch to the end of b; both must be of whole transactions. The later one may not be used any more.
func (b *Batch) Join(later *Batch) {
	for _, m := range later.Marks {
		m.End += len(b.Changes)
		b.Marks = append(b.Marks, m)
	}
	b.Changes = append(b.Changes, later.Changes...)
	b.Position = later.Position
	b.Bytes += later.Bytes
	if b.Received.IsZero() {
		b.Received = later.Received
	}
	b.chunks = append(b.chunks, later.chunks...)
	b.held += later.held
	if later.own != nil {
		b.own, b.used = later.own, later.used
	}
	if len(later.blocks) > 0 {
		b.blocks, b.full = append(b.blocks, later.blocks...), later.full
	}
	later.chunks, later.blocks = later.chunks[:0], later.blocks[:0]
	later.Release()
}

// Chunks is how many chunks the batch holds.
func (b *Batch) Chunks() int { return len(b.chunks) }

// again copies a tuple, whose data is held already.
func (b *Batch) again(tuple []Value) []Value {
	if tuple == nil {
		return nil
	}
	out := b.Values(len(tuple))
	copy(out, tuple)
	for _, v := range tuple {
		b.Bytes += len(v.Data)
	}
	return out
}

// Release gives the batch and its memory back to be used again: neither the batch nor its changes or values may be used any more. A
// batch that nobody releases is left to the garbage collector.
func (b *Batch) Release() {
	if b.shared {
		return
	}
	for _, c := range b.chunks {
		c.Release()
	}
	for _, v := range b.blocks {
		if poison {
			for i := range v {
				v[i] = Value{Kind: 0xdb}
			}
		}
		values.Put(v)
	}
	clear(b.chunks)
	clear(b.blocks)
	clear(b.Changes)
	*b = Batch{Changes: b.Changes[:0], Marks: b.Marks[:0], memory: memory{chunks: b.chunks[:0], blocks: b.blocks[:0]}}
	if poison {
		b.Position = "released"
		return // never used again, so that it stays recognisable
	}
	batches.Put(b)
}
