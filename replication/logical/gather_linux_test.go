package logical

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
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
			buf := make([]byte, 2*piece)
			for range turns {
				for got := 0; got < 2*piece; {
					if err := gather.wait(time.Millisecond); err != nil {
						return err
					}
					n, err := here.Read(buf)
					gather.took(n)
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

// TLS gives a record at a time. Of what has gathered, only the first is waited for.
func TestGatheredRecordsAreWaitedForOnce(t *testing.T) {
	server := httptest.NewUnstartedServer(nil) // for its certificate
	server.StartTLS()
	defer server.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server.TLS)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const size = 300 << 10 // less than enough, many records
	written := make(chan error, 1)
	go func() {
		there, err := l.Accept()
		if err == nil {
			defer there.Close()
			if _, err = there.Write(make([]byte, size)); err == nil {
				_, err = there.Read(make([]byte, 1)) // the end of the other side
			}
		}
		written <- err
	}()
	here, err := tls.Dial("tcp", l.Addr().String(), server.Client().Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	gather := newGatherer(here)
	for end := time.Now().Add(20 * time.Second); gather.known < size; {
		if time.Now().After(end) {
			t.Fatalf("%d of %d bytes have come", gather.known, size)
		}
		gather.known = 0 // until all has come
		if err := gather.wait(10 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	buf, reads := make([]byte, size), 0
	for got := 0; got < size; reads++ {
		if gather.known <= 0 {
			t.Fatalf("after %d reads, %d of %d bytes, the rest would be waited for once more", reads, got, size)
		}
		n, err := here.Read(buf)
		gather.took(n)
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	if reads < 10 {
		t.Fatalf("%d bytes came in %d reads: these weren't records", size, reads)
	}
	here.Close()
	if err := <-written; err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}
