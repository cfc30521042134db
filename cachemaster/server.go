package cachemaster

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"millrace/api"
	"millrace/internal/rpcerr"
)

const (
	// minPing is how often a client may ping at most; ours do so each 10 s.
	minPing = 5 * time.Second
	// maxStreams bounds the calls under way on one connection. A client has
	// one connection to a master.
	maxStreams = 4096
)

func (m *Master) newServer() *grpc.Server {
	s := grpc.NewServer(
		grpc.UnaryInterceptor(rpcerr.UnaryServerInterceptor),
		grpc.StreamInterceptor(rpcerr.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveWait}),
	)
	api.RegisterNamespaceServiceServer(s, &namespaceService{m: m})
	api.RegisterUFSServiceServer(s, &ufsService{m: m})
	api.RegisterJobServiceServer(s, &jobService{m: m})
	api.RegisterClusterServiceServer(s, &clusterService{m: m})
	api.RegisterWorkersServiceServer(s, &workersService{m: m})
	api.RegisterLocationServiceServer(s, &locationService{m: m})
	api.RegisterWorkerRegistryServiceServer(s, &registryService{m: m})
	return s
}
