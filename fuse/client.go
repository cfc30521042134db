package fuse

import (
	"context"
	"iter"

	"millrace/client"
)

// Client is what a mount needs of the cluster. Its methods are called
// concurrently and keep their own deadlines.
type Client interface {
	// Stat describes a path.
	Stat(ctx context.Context, path string, o client.StatOptions) (*client.Entry, error)
	// List streams the children of a directory.
	List(ctx context.Context, path string, o client.ListOptions) iter.Seq2[*client.Entry, error]
	// Locate says which blocks of a file are cached where.
	Locate(ctx context.Context, path string) (*client.Entry, []client.BlockLocation, error)
	// OpenEntry opens the version of a file that e has the ticket of.
	OpenEntry(ctx context.Context, e *client.Entry) (File, error)
	// PrepareDescriptors begins to get the descriptors of files that are likely
	// to be opened soon, and to fetch those of at most a page for it, and returns
	// at once.
	PrepareDescriptors(entries []*client.Entry)
	// CountOpen counts an open that was given to a program.
	CountOpen(passthrough bool)
}

// File is one version of an open file.
type File interface {
	// ReadAtContext fills p from off; it is short only with an error, which
	// is io.EOF at the file's end.
	ReadAtContext(ctx context.Context, p []byte, off int64) (int, error)
	// ReadInPlace is ReadAtContext that may leave the n bytes where they are: in
	// a local file that fills, if d is not nil. The caller closes it, and reads
	// nothing else in it.
	ReadInPlace(ctx context.Context, p []byte, off int64) (n int, d Descriptor, err error)
	// Descriptor returns a local file that holds every byte of the version:
	// errs.NotCached or errs.Unsupported if there is none, which is cheap to
	// ask again, errs.Timeout if the worker does not say within a second. With
	// fill, a file of at most a page that is to be cached on this host is
	// fetched first.
	Descriptor(ctx context.Context, fill bool) (Descriptor, error)
	Close() error
}

// Descriptor is an open local file of which a part is a version of a file,
// and stays so for as long as the descriptor is open.
type Descriptor interface {
	// FD is the number of the descriptor, good until Close.
	FD() int
	// Extent says which bytes of the local file are the version.
	Extent() (base, length int64)
	// IsFresh reports whether nobody used it before: a worker was asked for it.
	IsFresh() bool
	// Count tells that n bytes were read from the local file.
	Count(n int64)
	Close() error
}

// ClientOf returns the Client that stands on the SDK.
func ClientOf(c *client.Client) Client { return sdk{c} }

type sdk struct{ *client.Client }

func (s sdk) OpenEntry(ctx context.Context, e *client.Entry) (File, error) {
	f, err := s.Client.OpenEntry(ctx, e)
	if err != nil {
		return nil, err
	}
	return sdkFile{f}, nil
}

type sdkFile struct{ *client.File }

func (f sdkFile) ReadInPlace(ctx context.Context, p []byte, off int64) (int, Descriptor, error) {
	n, d, err := f.File.ReadInPlace(ctx, p, off)
	if d == nil {
		return n, nil, err
	}
	return n, d, err
}

func (f sdkFile) Descriptor(ctx context.Context, fill bool) (Descriptor, error) {
	ask := f.File.Descriptor
	if fill {
		ask = f.FillDescriptor
	}
	d, err := ask(ctx)
	if err != nil {
		return nil, err
	}
	return d, nil
}
