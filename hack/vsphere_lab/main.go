// A vCenter for tests: the simulator of govmomi with disks that hold content, snapshots that freeze it, change
// tracking, datastores over HTTP, and switches for what goes wrong. Started by hack/vsphere-lab; see hack/vsphere_labs.py.
//
//	vsphere-lab FOLDER PORT CERTIFICATE KEY
//
// FOLDER/config.json says what it holds at its first start; afterwards what lies in FOLDER is the truth, so that a
// killed peer started again finds the same machines, snapshots, deltas and changes. Port 0 takes any free one;
// FOLDER/port is written once calls are answered.
package main

import (
	"crypto/tls"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: vsphere-lab FOLDER PORT CERTIFICATE KEY")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, "vsphere-lab:", err)
		os.Exit(1)
	}
}

func run(folder, port, certificate, key string) error {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	l, err := openLab(folder)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	taken := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	server := &http.Server{
		Handler:   l,
		ErrorLog:  log.New(os.Stderr, "", log.LstdFlags),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		// Without HTTP/2, whose connections cannot be taken over to be cut.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	if err := writeFile(filepath.Join(folder, "port"), []byte(taken)); err != nil {
		return err
	}
	if os.Getenv("VSPHERE_LAB_ENDS_WITH_PARENT") != "" {
		go endWithParent(os.Getppid())
	}
	return server.ServeTLS(listener, "", "")
}

// endWithParent leaves no peer behind when a test that started it is killed.
func endWithParent(parent int) {
	for os.Getppid() == parent {
		time.Sleep(500 * time.Millisecond)
	}
	os.Exit(0)
}

// crash ends the process as kill -9 does.
func crash() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }
