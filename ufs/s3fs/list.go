package s3fs

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"millrace/internal/errs"
	"millrace/ufs"
)

// List streams what is in dir, with at most two pages of the server's listing
// in memory: the next one is fetched while the consumer is at one. Both kinds
// of list are in byte order, directories as if their names ended in a slash.
func (s *Store) List(ctx context.Context, dir string, opts ufs.ListOptions) iter.Seq2[ufs.Info, error] {
	return func(yield func(ufs.Info, error) bool) {
		l := &listing{store: s, dir: dir, opts: opts, yield: yield}
		if err := l.run(ctx); err != nil {
			yield(ufs.Info{}, err)
		}
	}
}

// errStop says that the consumer of a listing has seen enough.
var errStop = errors.New("stop")

// listing is one List under way.
type listing struct {
	store *Store
	dir   string
	opts  ufs.ListOptions
	yield func(ufs.Info, error) bool
	pages *pages

	seen bool   // there was any key below dir
	last string // the last key, to see that the order holds
	// files are the names seen, as keys, that are prefixes of the last key:
	// one of them may come again as a directory, behind keys in between.
	files []string
}

func (l *listing) run(ctx context.Context) error {
	s := l.store
	if err := s.checkPath("list", l.dir); err != nil {
		return err
	}
	in := s3.ListObjectsV2Input{
		Bucket: &s.bucket, Prefix: aws.String(s.dirKey(l.dir)), MaxKeys: &s.pageSize,
		// Keys may hold bytes that XML cannot.
		EncodingType: types.EncodingTypeUrl, RequestPayer: s.payer,
	}
	if !l.opts.Recursive {
		in.Delimiter = aws.String("/")
	} else if after := s.key(l.opts.After); l.opts.After != "" && after > *in.Prefix {
		in.StartAfter = &after
	}
	l.pages = &pages{store: s, in: in, more: true}
	defer l.pages.begin(ctx)()
	for l.pages.more {
		p, err := l.pages.next()
		if err != nil {
			return s.fail(ctx, "list", l.dir, err)
		}
		if err := l.page(p); err != nil {
			if errors.Is(err, errStop) {
				return nil
			}
			return errs.Wrap(err, "list", s.name(l.dir))
		}
	}
	return l.checkExists(ctx)
}

// checkExists tells an empty directory from none and from a file.
func (l *listing) checkExists(ctx context.Context) error {
	s := l.store
	if l.seen || (l.dir == "" && l.opts.After == "") {
		return nil
	}
	if l.opts.After != "" { // there may be keys up to After
		if ok, err := s.dirExists(ctx, "list", l.dir); ok || err != nil {
			return err
		}
	}
	if _, err := s.statFile(ctx, l.dir); err != nil {
		return errs.Wrap(err, "list", s.name(l.dir))
	}
	return errs.E(errs.NotDir, "list", s.name(l.dir), nil)
}

// entry is a key of a page: an object, or a common prefix where object is nil.
type entry struct {
	key    string
	object *object
}

// page yields a page's objects and common prefixes, merged in byte order.
func (l *listing) page(p *page) error {
	decode := func(key string) (string, error) {
		if p.encoding != string(types.EncodingTypeUrl) {
			return key, nil
		}
		return url.QueryUnescape(key)
	}
	objects, prefixes := p.objects, p.prefixes
	var object, prefix string
	var err error
	load := func() {
		if len(objects) > 0 && err == nil {
			object, err = decode(objects[0].key)
		}
		if len(prefixes) > 0 && err == nil {
			prefix, err = decode(prefixes[0])
		}
	}
	for n := 0; len(objects) > 0 || len(prefixes) > 0; n++ {
		if n == 1 { // a consumer that came back for a second entry goes on
			l.pages.prefetch()
		}
		if load(); err != nil {
			return errs.E(errs.Unavailable, "", "", fmt.Errorf("a key of the server's answer: %w", err))
		}
		e := entry{key: prefix}
		if len(prefixes) == 0 || (len(objects) > 0 && object < prefix) {
			e = entry{key: object, object: &objects[0]}
			objects = objects[1:]
		} else {
			prefixes = prefixes[1:]
		}
		if err := l.entry(e, p.now); err != nil {
			return err
		}
	}
	return nil
}

// entry yields one key, if it can be a path.
func (l *listing) entry(e entry, now time.Time) error {
	s := l.store
	rest, ok := strings.CutPrefix(e.key, s.dirKey(l.dir))
	if !ok {
		return errs.E(errs.Unavailable, "", "", fmt.Errorf("the server lists the key %q, which is not below it", e.key))
	}
	l.seen = true
	if l.opts.Recursive {
		if e.key <= l.last && l.last != "" {
			return errs.E(errs.Unsupported, "", "", errors.New("the server does not list keys in byte order"))
		}
		l.last = e.key
	}
	if e.object == nil {
		rest = strings.TrimSuffix(rest, "/")
	}
	if !l.opts.Recursive && strings.Contains(rest, "/") {
		return errs.E(errs.Unsupported, "", "", errors.New("the server ignores the delimiter of a listing"))
	}
	path := ufs.Join(l.dir, rest)
	if rest == "" || !ufs.ValidPath(rest) || (l.opts.Recursive && path <= l.opts.After) {
		return nil
	}
	if l.shadowed(e) {
		return nil
	}
	info := ufs.Info{Path: path, Type: ufs.Dir}
	if o := e.object; o != nil {
		if o.size < 0 {
			return errs.E(errs.Unavailable, "", "", fmt.Errorf("the server does not say how long %q is", e.key))
		}
		v := version{etag: o.etag, modified: o.modified, length: o.size}
		info = s.fileInfo(path, v, now)
	}
	if !l.yield(info, nil) {
		return errStop
	}
	return nil
}

// shadowed reports whether e is a directory whose name was a file before. In
// byte order, all that stands between the two starts with that name.
func (l *listing) shadowed(e entry) bool {
	if l.opts.Recursive {
		return false
	}
	for n := len(l.files); n > 0 && !strings.HasPrefix(e.key, l.files[n-1]); n-- {
		l.files = l.files[:n-1]
	}
	if e.object != nil {
		l.files = append(l.files, e.key)
		return false
	}
	return slices.Contains(l.files, strings.TrimSuffix(e.key, "/"))
}
