package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"k8s.io/client-go/util/cert"
)

// selfSigned writes NAME.crt and NAME.key for 127.0.0.1: "kube selfsigned NAME". It spares the machine openssl.
func selfSigned() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: kube selfsigned PATH, which writes PATH.crt and PATH.key")
		os.Exit(2)
	}
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}
	crt, key, err := cert.GenerateSelfSignedCertKey("127.0.0.1", []net.IP{net.IPv4(127, 0, 0, 1)}, names)
	if err == nil {
		err = os.WriteFile(os.Args[1]+".crt", crt, 0o644)
	}
	if err == nil {
		err = os.WriteFile(os.Args[1]+".key", key, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube selfsigned:", err)
		os.Exit(1)
	}
}

// dieWithParent ends this program when its standard input closes, which the kernel does even for a parent that was
// killed. Only on request: a cluster that a person started with "up" outlives that command.
func dieWithParent() {
	if os.Getenv("KUBE_LIFELINE") != "stdin" {
		return
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
		time.Sleep(5 * time.Second)
		os.Exit(1)
	}()
}
