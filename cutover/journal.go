package cutover

import (
	"context"
	"fmt"
	"time"

	"replicator/internal/retry"
)

// journalTimeout bounds one call of the journal, after which its outcome is asked for.
const journalTimeout = 10 * time.Second

// load reads the journal until it answers, and takes over its record.
func (c *Coordinator) load(ctx context.Context) error {
	defer c.waiting.clear("journal")
	return retry.Do(ctx, c.journalPolicy(), func(ctx context.Context) error {
		r, err := c.read(ctx)
		if err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.current, c.inherited, c.revision, c.loaded = r, r, r.Revision, true
		return nil
	})
}

// read loads and decodes once; what can't be decoded will not get better.
func (c *Coordinator) read(ctx context.Context) (Record, error) {
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	b, err := c.options.Journal.Load(ctx)
	if err != nil {
		return Record{}, fmt.Errorf("load the cutover journal: %w", err)
	}
	r, err := decode(b)
	return r, retry.Stop(err)
}

// save makes r the journal's record and returns when that is certain, or ctx ends, or this process is found to lead no more (an
// error while ctx is alive). After an error from the journal it asks what the journal holds: a save can be stored though its
// answer was lost. Each record gets a higher revision than any that was tried before it, so a late arrival is recognised.
func (c *Coordinator) save(ctx context.Context, r Record) error {
	defer c.waiting.clear("journal")
	c.revision++
	r.Revision, r.Writer, r.Version = c.revision, c.writer, recordVersion
	b, err := r.encode()
	if err != nil {
		return err
	}
	err = retry.Do(ctx, c.journalPolicy(), func(ctx context.Context) error {
		err := c.write(ctx, b)
		if err == nil {
			return nil
		}
		held, lerr := c.read(ctx)
		switch {
		case lerr != nil:
			return err // keeps a Stop mark
		case held.Writer == c.writer && held.Revision == r.Revision:
			return nil
		case held.Writer != c.writer && (held.Writer != c.inherited.Writer || held.Revision != c.inherited.Revision):
			return retry.Stop(ErrSuperseded)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("save the cutover journal: %w", err)
	}
	c.publish(r)
	return nil
}

func (c *Coordinator) write(ctx context.Context, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	return c.options.Journal.Save(ctx, b)
}

func (c *Coordinator) journalPolicy() retry.Policy {
	return retry.Policy{First: 50 * time.Millisecond, Max: 2 * time.Second, Notify: func(err error, attempt int, _ time.Duration) {
		c.waiting.set("journal", fmt.Sprintf("the journal, after %d tries: %v", attempt, err))
		if attempt == 1 {
			c.log.Warn("cutover journal does not answer", "err", err)
		}
	}}
}
