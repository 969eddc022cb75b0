package logical

import (
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// However much or little comes, and whenever, a reader that lets it gather gets it: a socket that reports data only from enough bytes on is never
// waited for without end. Readiness that is left from data already read is what led there.
func TestGatheredIsRead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var g errgroup.Group
	for range 50 {
		here, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer here.Close()
		there, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer there.Close()
		// The server sends two pieces for each answer, as it does with a portion's rows and its end.
		const turns, piece = 200, 1000
		g.Go(func() error {
			answer := make([]byte, 1)
			for range turns {
				for range 2 {
					if _, err := there.Write(make([]byte, piece)); err != nil {
						return err
					}
				}
				if err := there.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
					return err
				}
				if _, err := io.ReadFull(there, answer); err != nil {
					return err
				}
			}
			return nil
		})
		g.Go(func() error {
			gather := newGatherer(here)
			defer gather.close()
			buf := make([]byte, 2*piece)
			for range turns {
				for got := 0; got < 2*piece; {
					if err := gather.wait(t.Context(), here, 0, true); err != nil {
						return err
					}
					n, err := here.Read(buf)
					if err != nil {
						return err
					}
					got += n
				}
				if _, err := here.Write(buf[:1]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	done := make(chan error, 1)
	go func() { done <- g.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("a reader waits for what won't come")
	}
}
