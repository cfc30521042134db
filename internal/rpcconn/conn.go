package rpcconn

import (
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"millrace/internal/errs"
	"millrace/internal/rpcerr"
)

// MaxMessage bounds a message, either way, in bytes.
const MaxMessage = 16 << 20

const (
	// pingAfter is how long a connection may be silent while a call waits, and
	// pingWait how long the answer to a ping may take. A server ends connections
	// that ping more often than each leastPing.
	pingAfter = 10 * time.Second
	pingWait  = 3 * time.Second
	leastPing = 5 * time.Second

	leastPause  = 50 * time.Millisecond // between attempts to connect
	mostPause   = time.Second
	connectTime = 3 * time.Second // of one attempt
)

// Dial makes a connection to the server at address, HOST:PORT, which is
// connected to at the first call. What is no address is errs.Invalid.
func Dial(address string) (*grpc.ClientConn, error) {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, errs.E(errs.Invalid, "connect to", address, err)
	}
	cc, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(rpcerr.UnaryClientInterceptor),
		grpc.WithStreamInterceptor(rpcerr.StreamClientInterceptor),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingWait}),
		// gRPC's own pauses grow to two minutes, in which all calls fail with what
		// was found before.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: leastPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: mostPause},
			MinConnectTimeout: connectTime,
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, errs.E(errs.Invalid, "connect to", address, err)
	}
	return cc, nil
}

// ServerOptions are those of every server. More interceptors may be chained
// behind theirs.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(rpcerr.UnaryServerInterceptor),
		grpc.ChainStreamInterceptor(rpcerr.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: leastPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingWait}),
	}
}
