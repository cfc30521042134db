package cachemaster

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/internal/rpcconn"
)

// maxStreams bounds the calls under way on one connection. A client has one
// connection to a master.
const maxStreams = 4096

func (m *Master) newServer() *grpc.Server {
	s := grpc.NewServer(append(rpcconn.ServerOptions(),
		grpc.ChainUnaryInterceptor(m.unaryOnceRunning),
		grpc.ChainStreamInterceptor(m.streamOnceRunning),
		grpc.MaxConcurrentStreams(maxStreams),
	)...)
	api.RegisterNamespaceServiceServer(s, &namespaceService{m: m})
	api.RegisterUFSServiceServer(s, &ufsService{m: m})
	api.RegisterJobServiceServer(s, &jobService{m: m})
	api.RegisterClusterServiceServer(s, &clusterService{m: m})
	api.RegisterWorkersServiceServer(s, &workersService{m: m})
	api.RegisterLocationServiceServer(s, &locationService{m: m})
	api.RegisterWorkerRegistryServiceServer(s, &registryService{m: m})
	api.RegisterGroupServiceServer(s, &groupService{m: m})
	return s
}

// entered refuses a call to a master that has not entered the group, or left it
// and knows nothing new, save those that are about entering it.
func (m *Master) entered(method string) error {
	if m.running.Load() && !m.apart.Load() || method == api.GroupService_Found_FullMethodName || method == api.GroupService_Leader_FullMethodName {
		return nil
	}
	return errs.E(errs.Unavailable, "", "", errNotEntered)
}

var errNotEntered = errors.New("this master has not entered the group")

func (m *Master) unaryOnceRunning(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := m.entered(info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (m *Master) streamOnceRunning(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := m.entered(info.FullMethod); err != nil {
		return err
	}
	return handler(srv, stream)
}
