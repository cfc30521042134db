package client

import (
	"context"

	"google.golang.org/grpc"

	"millrace/api"
)

// DrainWorker makes a worker own no blocks any more: new reads go to others,
// which have from it what it has cached, and it can be stopped. It is
// errs.Invalid for the last worker that owns blocks.
func (c *Client) DrainWorker(ctx context.Context, id string) error {
	return c.drain(ctx, "drain worker", &api.DrainWorkerRequest{WorkerId: id})
}

// UndrainWorker gives a worker its share of the blocks again.
func (c *Client) UndrainWorker(ctx context.Context, id string) error {
	return c.drain(ctx, "undrain worker", &api.DrainWorkerRequest{WorkerId: id, Undrain: true})
}

func (c *Client) drain(ctx context.Context, op string, req *api.DrainWorkerRequest) error {
	return c.masters.call(ctx, op, req.GetWorkerId(), func(ctx context.Context, cc *grpc.ClientConn) error {
		_, err := api.NewWorkersServiceClient(cc).DrainWorker(ctx, req)
		return err
	})
}

// ForgetWorker takes a worker that is gone off the registry. It is errs.Busy
// for one that is alive.
func (c *Client) ForgetWorker(ctx context.Context, id string) error {
	return c.masters.call(ctx, "forget worker", id, func(ctx context.Context, cc *grpc.ClientConn) error {
		_, err := api.NewWorkersServiceClient(cc).ForgetWorker(ctx, &api.ForgetWorkerRequest{WorkerId: id})
		return err
	})
}
