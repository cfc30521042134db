package hdfsfs

import (
	"encoding/binary"
	"net"

	"google.golang.org/protobuf/encoding/protowire"
)

// rpcConn is a connection to a NameNode that the library talks through. Each
// call has a deadline, after a failure the connection serves nobody any more,
// and what is asked of files and directories is asked with the locations of
// their blocks: the library itself leaves them out.
type rpcConn struct {
	net.Conn
	owner   *client
	address string
}

// Write sends one message of the library, which is one whole request.
func (c *rpcConn) Write(p []byte) (int, error) {
	message := c.owner.complete(p)
	if err := c.owner.arm(c); err != nil {
		return 0, err
	}
	if _, err := c.Conn.Write(message); err != nil {
		c.owner.fail(c)
		return 0, err
	}
	return len(p), nil
}

// Read reads a piece of an answer. The library asks for one after a request
// only, whose deadline covers it.
func (c *rpcConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.owner.received.Add(int64(n))
	if err != nil {
		c.owner.fail(c)
	}
	return n, err
}

// Close is called by the library when it leaves a NameNode.
func (c *rpcConn) Close() error {
	c.owner.left(c)
	return c.Conn.Close()
}

// The methods of a NameNode that are completed.
const (
	methodInfo        = "getFileInfo"
	methodLocatedInfo = "getLocatedFileInfo"
	methodListing     = "getListing"
)

// withLocations returns a request that asks for what packet asks for, and the
// locations of blocks besides: getFileInfo becomes getLocatedFileInfo, of which
// request and answer are the same but for the locations, and getListing has a
// field for it. A listing starts behind the name after, if there is one. Any
// other request is returned as it is, method being "".
//
// A packet is its length and three messages, each behind its own: a header of
// the call, a header that names the method in field 1, and the request, whose
// last value of a field counts.
func withLocations(packet []byte, after string) (out []byte, method string) {
	const frame = 4
	if len(packet) < frame {
		return packet, ""
	}
	call, n1 := protowire.ConsumeBytes(packet[frame:])
	if n1 < 0 {
		return packet, ""
	}
	header, n2 := protowire.ConsumeBytes(packet[frame+n1:])
	if n2 < 0 {
		return packet, ""
	}
	request, n3 := protowire.ConsumeBytes(packet[frame+n1+n2:])
	if n3 < 0 || frame+n1+n2+n3 != len(packet) {
		return packet, ""
	}
	num, typ, n := protowire.ConsumeTag(header)
	if n < 0 || num != 1 || typ != protowire.BytesType {
		return packet, ""
	}
	name, m := protowire.ConsumeString(header[n:])
	if m < 0 {
		return packet, ""
	}
	var more []byte
	asked := name
	switch name {
	case methodInfo:
		asked = methodLocatedInfo
		more = protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 1) // needBlockToken
	case methodListing:
		more = protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), 1) // needLocation
		if after != "" {
			more = protowire.AppendString(protowire.AppendTag(more, 2, protowire.BytesType), after) // startAfter
		}
	default:
		return packet, ""
	}
	newHeader := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), asked)
	newHeader = append(newHeader, header[n+m:]...)

	out = make([]byte, frame, len(packet)+32)
	out = protowire.AppendBytes(out, call)
	out = protowire.AppendBytes(out, newHeader)
	out = protowire.AppendVarint(out, uint64(len(request)+len(more)))
	out = append(append(out, request...), more...)
	binary.BigEndian.PutUint32(out, uint32(len(out)-frame))
	return out, name
}
