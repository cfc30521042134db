package rpcconn

import (
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"millrace/internal/errs"
)

func TestErrorsPass(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(any, grpc.ServerStream) error { return errs.E(errs.Stale, "ask", "/x", errors.New("old")) }
	s := grpc.NewServer(append(ServerOptions(), grpc.UnknownServiceHandler(refuse))...)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	defer func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	cc, err := Dial(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	err = cc.Invoke(t.Context(), "/any/Call", &emptypb.Empty{}, &emptypb.Empty{})
	if !errors.Is(err, errs.Stale) || err.Error() != "ask /x: old" {
		t.Errorf("got %v", err)
	}
}

// TestReturnIsNoticed: one that was away is tried again and again, without
// pauses in which calls fail with what was found long before.
func TestReturnIsNoticed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cc, err := Dial(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	cc.Connect()
	var last time.Time
	for range 12 { // with gRPC's pauses the last would be one of a minute and more
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		last = time.Now()
	}
	if err := ln.(*net.TCPListener).SetDeadline(last.Add(10 * mostPause)); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatalf("it is not tried again: %v", err)
	}
	conn.Close()
}
