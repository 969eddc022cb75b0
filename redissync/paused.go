package redissync

import "context"

func (j *Journal) pausedKey() string { return j.o.own("paused") }

// Paused tells whether the operator has paused the migration; a pause outlives the process that was asked for it.
func (j *Journal) Paused(ctx context.Context) (bool, error) {
	var paused, known bool
	_, err := j.read(ctx, j.pausedKey(), func(_ side, text string) error {
		if !known { // the target comes first
			paused, known = text == "true", true
		}
		return nil
	})
	return paused, err
}

// SetPaused remembers a pause, or its end. It stands on the target when it returns nil.
func (j *Journal) SetPaused(ctx context.Context, paused bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	elsewhere, err := j.fenced(ctx)
	if err != nil {
		return err
	}
	text := "false"
	if paused {
		text = "true"
	}
	return j.write(ctx, j.pausedKey(), text, elsewhere)
}
