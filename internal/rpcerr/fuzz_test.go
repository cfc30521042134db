package rpcerr_test

import (
	"errors"
	"testing"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"millrace/internal/errs"
	"millrace/internal/rpcerr"
)

// FuzzFromStatus: whatever status a peer sends, it becomes an error that can
// be shown and sent on as the same kind.
func FuzzFromStatus(f *testing.F) {
	for _, err := range []error{
		errs.E(errs.NotFound, "stat", "/a", nil).WithHint("look elsewhere"),
		&rpcerr.NotLeader{Leader: "10.0.0.1:7760"},
		errors.New("x"),
	} {
		st, _ := status.FromError(rpcerr.ToStatus(err))
		b, err := proto.Marshal(st.Proto())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p spb.Status
		if proto.Unmarshal(b, &p) != nil {
			return
		}
		sent := status.FromProto(&p).Err()
		got := rpcerr.FromStatus(sent)
		if (got == nil) != (sent == nil) {
			t.Fatalf("%v became %v", sent, got)
		}
		if got == nil {
			return
		}
		_ = got.Error()
		again := rpcerr.FromStatus(rpcerr.ToStatus(got))
		if a, b := errs.KindOf(got), errs.KindOf(again); a != b {
			t.Errorf("%v of kind %v was sent on as %v of kind %v", got, a, again, b)
		}
	})
}
