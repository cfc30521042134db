package s3fs

import (
	"bytes"
	"errors"
	"strconv"
	"unicode/utf8"

	smithytime "github.com/aws/smithy-go/time"
)

// errUnusual says that an answer is not written as servers write it, and is
// left to a parser that knows all of XML.
var errUnusual = errors.New("unusual XML")

// parsePage reads the answer to ListObjectsV2, as far as this package uses it.
// The SDK's parser costs more than all the rest that is done with a listing.
// This one takes what is plain (elements that it knows, text, entities) and
// nothing else, so that what it takes means the same to any parser.
func parsePage(body []byte) (*page, error) {
	const (
		root      = "ListBucketResult"
		perObject = 300 // bytes, mostly
	)
	p := &page{objects: make([]object, 0, len(body)/perObject+1)}
	s := xmlScanner{rest: body}
	if err := s.begin(root); err != nil {
		return nil, err
	}
	for {
		name, more, err := s.child(root)
		if err == nil && !more {
			break
		}
		if err == nil {
			err = p.element(&s, name)
		}
		if err != nil {
			return nil, err
		}
	}
	if s.space(); len(s.rest) > 0 {
		return nil, errUnusual
	}
	return p, nil
}

// element reads one child of the answer.
func (p *page) element(s *xmlScanner, name []byte) error {
	switch string(name) {
	case "Contents":
		return p.contents(s)
	case "CommonPrefixes":
		return p.commonPrefixes(s)
	}
	text, err := s.text(name)
	if err != nil {
		return err
	}
	switch string(name) {
	case "IsTruncated":
		p.more, err = strconv.ParseBool(string(text))
	case "NextContinuationToken":
		err = once(&p.token, text)
	case "EncodingType":
		err = once(&p.encoding, text)
	case "Name", "Prefix", "Delimiter", "MaxKeys", "KeyCount", "ContinuationToken", "StartAfter":
	default:
		err = errUnusual
	}
	return err
}

// once sets a text that may be given once.
func once(to *string, text []byte) error {
	if *to != "" {
		return errUnusual
	}
	*to = string(text)
	return nil
}

// contents reads one object.
func (p *page) contents(s *xmlScanner) error {
	o := object{size: -1}
	for keys := 0; ; {
		name, more, err := s.child("Contents")
		if err == nil && !more {
			if keys != 1 {
				return errUnusual
			}
			p.objects = append(p.objects, o)
			return nil
		}
		if err != nil {
			return err
		}
		if string(name) == "Owner" {
			if err := s.skip("Owner"); err != nil {
				return err
			}
			continue
		}
		text, err := s.text(name)
		if err != nil {
			return err
		}
		switch string(name) {
		case "Key":
			keys++
			o.key = string(text)
		case "Size":
			o.size, err = strconv.ParseInt(string(text), 10, 64)
		case "ETag":
			err = once(&o.etag, text)
		case "LastModified":
			o.modified, err = smithytime.ParseDateTime(string(text))
		case "StorageClass", "ChecksumAlgorithm", "ChecksumType":
		default:
			err = errUnusual
		}
		if err != nil {
			return err
		}
	}
}

// commonPrefixes reads one prefix.
func (p *page) commonPrefixes(s *xmlScanner) error {
	for found := 0; ; found++ {
		name, more, err := s.child("CommonPrefixes")
		switch {
		case err != nil:
			return err
		case !more && found == 1:
			return nil
		case !more, string(name) != "Prefix":
			return errUnusual
		}
		text, err := s.text(name)
		if err != nil {
			return err
		}
		p.prefixes = append(p.prefixes, string(text))
	}
}

// xmlScanner goes over the plain part of XML.
type xmlScanner struct {
	rest  []byte
	ended bool   // the element that was opened last has its end in its start
	plain []byte // a text whose entities were resolved
}

// space skips white space.
func (s *xmlScanner) space() { s.rest = bytes.TrimLeft(s.rest, " \t\n") }

// begin reads what is before the children of the outermost element.
func (s *xmlScanner) begin(root string) error {
	if head, rest, ok := bytes.Cut(s.rest, []byte("?>")); ok {
		switch string(head) {
		case `<?xml version="1.0" encoding="UTF-8"`, `<?xml version="1.0" encoding="utf-8"`:
			s.rest = rest
		default:
			return errUnusual
		}
	}
	s.space()
	start, rest, ok := bytes.Cut(s.rest, []byte(">"))
	if !ok || len(start) == 0 || start[0] != '<' {
		return errUnusual
	}
	switch string(start[1:]) {
	case root, root + ` xmlns="http://s3.amazonaws.com/doc/2006-03-01/"`:
		s.rest = rest
		return nil
	default:
		return errUnusual
	}
}

// child reads the start of the next child of parent, or parent's end; then
// more is false.
func (s *xmlScanner) child(parent string) (name []byte, more bool, err error) {
	if s.ended {
		return nil, false, errUnusual // what has children is not empty
	}
	s.space()
	tag, rest, ok := bytes.Cut(s.rest, []byte(">"))
	if !ok || len(tag) < 2 || tag[0] != '<' {
		return nil, false, errUnusual
	}
	s.rest = rest
	if name, ok := bytes.CutPrefix(tag, []byte("</")); ok {
		if string(name) != parent {
			return nil, false, errUnusual
		}
		return nil, false, nil
	}
	name, s.ended = bytes.CutSuffix(tag[1:], []byte("/"))
	for i, c := range name {
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9' || i == 0) {
			return nil, false, errUnusual
		}
	}
	return name, true, nil
}

// skip reads over the children of parent, which hold text only.
func (s *xmlScanner) skip(parent string) error {
	for {
		name, more, err := s.child(parent)
		if err != nil || !more {
			return err
		}
		if _, err := s.text(name); err != nil {
			return err
		}
	}
}

// text reads the rest of an element that holds text only. What it returns is
// good until the next call.
func (s *xmlScanner) text(name []byte) ([]byte, error) {
	if s.ended {
		s.ended = false
		return nil, nil
	}
	end := bytes.IndexByte(s.rest, '<')
	if end < 0 {
		return nil, errUnusual
	}
	text, rest := s.rest[:end], s.rest[end:]
	rest, ok := bytes.CutPrefix(rest, []byte("</"))
	if ok {
		rest, ok = bytes.CutPrefix(rest, name)
	}
	if !ok || len(rest) == 0 || rest[0] != '>' {
		return nil, errUnusual
	}
	s.rest = rest[1:]
	special := false
	for _, c := range text {
		if c < ' ' || c == ']' || c >= utf8.RuneSelf {
			return nil, errUnusual // needs a closer look than it is worth
		}
		special = special || c == '&'
	}
	if !special {
		return text, nil
	}
	return s.resolve(text)
}

// resolve replaces the entities in a text.
func (s *xmlScanner) resolve(text []byte) ([]byte, error) {
	s.plain = s.plain[:0]
	for {
		before, rest, found := bytes.Cut(text, []byte("&"))
		s.plain = append(s.plain, before...)
		if !found {
			return s.plain, nil
		}
		name, rest, ok := bytes.Cut(rest, []byte(";"))
		if !ok {
			return nil, errUnusual
		}
		switch string(name) {
		case "amp", "#38":
			s.plain = append(s.plain, '&')
		case "lt", "#60":
			s.plain = append(s.plain, '<')
		case "gt", "#62":
			s.plain = append(s.plain, '>')
		case "quot", "#34":
			s.plain = append(s.plain, '"')
		case "apos", "#39":
			s.plain = append(s.plain, '\'')
		default:
			return nil, errUnusual
		}
		text = rest
	}
}
