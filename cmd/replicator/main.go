package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(runMain()) }

func runMain() int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// The first signal asks for an orderly end; the second one ends the program at once, which is safe at any instant.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	go func() { // lives as long as the program
		<-signals
		cancel()
		<-signals
		os.Exit(128 + int(syscall.SIGTERM))
	}()
	c := &cli{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, env: os.LookupEnv, version: version}
	return c.execute(ctx, os.Args[1:])
}
