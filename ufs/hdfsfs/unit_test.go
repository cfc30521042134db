package hdfsfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/colinmarc/hdfs/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"millrace/internal/errs"
	"millrace/ufs"
)

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	site := `<configuration>
		<property><name>fs.defaultFS</name><value>hdfs://ns</value></property>
		<property><name>dfs.ha.namenodes.ns</name><value>a, b</value></property>
		<property><name>dfs.namenode.rpc-address.ns.a</name><value>host-a:9000</value></property>
		<property><name>dfs.namenode.rpc-address.ns.b</name><value>host-b</value></property>
		<property><name>dfs.ha.namenodes.half</name><value>c</value></property>
		<property><name>dfs.client.use.datanode.hostname</name><value>true</value></property>
	</configuration>`
	if err := os.WriteFile(filepath.Join(dir, "core-site.xml"), []byte(site), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HADOOP_CONF_DIR", "")
	t.Setenv("HADOOP_HOME", "")
	t.Setenv("HADOOP_USER_NAME", "someone")
	conf := map[string]string{"conf_dir": dir}
	for _, tc := range []struct {
		uri     string
		options map[string]string
		nodes   []string
		dir     string
		wrong   string // what the message says, "" when right
	}{
		{uri: "hdfs://host/a/b", nodes: []string{"host:8020"}, dir: "/a/b"},
		{uri: "hdfs://host:9000", nodes: []string{"host:9000"}, dir: "/"},
		{uri: "hdfs://host/ünder%20/", nodes: []string{"host:8020"}, dir: "/ünder%20"},
		{uri: "hdfs://any/", options: map[string]string{"namenodes": "x:1, y"}, nodes: []string{"x:1", "y:8020"}, dir: "/"},
		{uri: "hdfs://ns/d", options: conf, nodes: []string{"host-a:9000", "host-b:8020"}, dir: "/d"},
		{uri: "hdfs:///d", options: conf, nodes: []string{"host-a:9000", "host-b:8020"}, dir: "/d"},
		{uri: "hdfs://half", options: conf, wrong: "dfs.namenode.rpc-address.half.c"},
		{uri: "hdfs:///d", wrong: "fs.defaultFS"},
		{uri: "s3://b", wrong: "want hdfs://"},
		{uri: "hdfs://h/a/../b", wrong: "is no directory"},
		{uri: "hdfs://h/\xff", wrong: "UTF-8"},
		{uri: "hdfs://h:port/", wrong: "no address"},
		{uri: "hdfs://h", options: map[string]string{"nonsense": ""}, wrong: "nonsense"},
		{uri: "hdfs://h", options: map[string]string{"clients": "0"}, wrong: "clients"},
		{uri: "hdfs://h", options: map[string]string{"datanode_timeout": "1us"}, wrong: "datanode_timeout"},
		{uri: "hdfs://h", options: map[string]string{"namenode_timeout": "soon"}, wrong: "namenode_timeout"},
		{uri: "hdfs://h", options: map[string]string{"use_hostname": "maybe"}, wrong: "use_hostname"},
		{uri: "hdfs://h", options: map[string]string{"conf_dir": filepath.Join(dir, "none")}, wrong: "conf_dir"},
		{uri: "hdfs://h", options: map[string]string{"principal": "a@B"}, wrong: "keytab"},
		{uri: "hdfs://h", options: map[string]string{"keytab": filepath.Join(dir, "none"), "principal": "a@B"}, wrong: "keytab"},
		{uri: "hdfs://h", options: map[string]string{"keytab": "x", "principal": "a"}, wrong: "principal"},
		{uri: "hdfs://h", options: map[string]string{"keytab": "x", "user": "a"}, wrong: "exclude"},
		{uri: "hdfs://h", options: map[string]string{"max_requests": "ten"}, wrong: "max_requests"},
	} {
		got, err := parse(ufs.Config{URI: tc.uri, Options: tc.options})
		if tc.wrong != "" {
			if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tc.wrong) {
				t.Errorf("%s %v: %v", tc.uri, tc.options, err)
			}
			continue
		}
		if err != nil || !slices.Equal(got.nameNodes, tc.nodes) || got.dir != tc.dir || got.user != "someone" {
			t.Errorf("%s %v: %+v, %v", tc.uri, tc.options, got, err)
		}
		if got.useHostname != (tc.options["conf_dir"] != "") || got.dataNodeTimeout != 2*time.Second {
			t.Errorf("%s: %+v", tc.uri, got)
		}
	}
	site = `<configuration><property><name>hadoop.security.authentication</name><value>kerberos</value></property></configuration>`
	if err := os.WriteFile(filepath.Join(dir, "core-site.xml"), []byte(site), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HADOOP_CONF_DIR", dir)
	if _, err := parse(ufs.Config{URI: "hdfs://h"}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "keytab") {
		t.Errorf("Kerberos without a keytab: %v", err)
	}
}

// packet frames messages as the library does.
func packet(messages ...[]byte) []byte {
	out := make([]byte, 4)
	for _, m := range messages {
		out = protowire.AppendBytes(out, m)
	}
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out
}

func text(num protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), s)
}

func number(num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
}

func TestWithLocations(t *testing.T) {
	call, rest, src := number(3, 7), text(2, "protocol"), text(1, "/a")
	request := func(method string, more ...[]byte) []byte {
		return packet(call, slices.Concat(text(1, method), rest), slices.Concat(append([][]byte{src}, more...)...))
	}
	for _, tc := range []struct{ asked, want []byte }{
		{request("getFileInfo"), request("getLocatedFileInfo", number(2, 1))},
		{request("getListing", number(3, 0)), request("getListing", number(3, 0), number(3, 1), text(2, "last"))},
		{request("renewLease"), request("renewLease")},
		{[]byte("hrpc\x09\x00\x00"), []byte("hrpc\x09\x00\x00")},
		{packet(call), packet(call)},
		{packet(call, number(1, 1), src), packet(call, number(1, 1), src)},
		{append(request("getFileInfo"), 0), append(request("getFileInfo"), 0)},
	} {
		if got, _ := withLocations(tc.asked, "last"); !bytes.Equal(got, tc.want) {
			t.Errorf("%q became %q, want %q", tc.asked, got, tc.want)
		}
	}
}

func FuzzWithLocations(f *testing.F) {
	f.Add(packet(number(3, 7), text(1, "getFileInfo"), text(1, "/a")))
	f.Add(packet(number(3, 7), text(1, "getListing"), text(1, "/a")))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, method := withLocations(b, "x")
		if method == "" && !bytes.Equal(out, b) {
			t.Errorf("%q is changed", b)
		}
		if method != "" && int(binary.BigEndian.Uint32(out)) != len(out)-4 {
			t.Errorf("%q has a wrong length", out)
		}
	})
}

// answer is what a DataNode sends for data from offset on, in packets of so
// many bytes.
func answer(kind, chunk uint64, offset int64, data []byte, size int) []byte {
	sum := func(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
	if kind == checksumCRC32 {
		sum = crc32.ChecksumIEEE
	}
	message := func(num protowire.Number, m []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), m)
	}
	info := slices.Concat(message(1, slices.Concat(number(1, kind), number(2, chunk))), number(2, uint64(offset)))
	out := protowire.AppendBytes(nil, slices.Concat(number(1, statusSuccess), message(4, info)))
	for {
		part := data[:min(size, len(data))]
		data = data[len(part):]
		var sums []byte
		for c := range slices.Chunk(part, int(chunk)) {
			sums = binary.BigEndian.AppendUint32(sums, sum(c))
		}
		header := protowire.AppendFixed64(protowire.AppendTag(nil, 1, protowire.Fixed64Type), uint64(offset))
		header = protowire.AppendFixed32(protowire.AppendTag(header, 4, protowire.Fixed32Type), uint32(len(part)))
		out = binary.BigEndian.AppendUint32(out, uint32(4+len(sums)+len(part)))
		out = binary.BigEndian.AppendUint16(out, uint16(len(header)))
		out = slices.Concat(out, header, sums, part)
		if offset += int64(len(part)); len(part) == 0 {
			return out
		}
	}
}

// pipeEnd is a pipe of which the other end may be closed before all is read,
// as that of a socket may.
type pipeEnd struct{ net.Conn }

func (p pipeEnd) SetReadDeadline(t time.Time) error {
	if err := p.Conn.SetReadDeadline(t); !errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	return nil
}

// serve runs a request for [from, from+length) of a block against an answer.
func serve(t testing.TB, reply []byte, from, length int64) ([]byte, error) {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		request := make([]byte, 1024)
		if _, err := theirs.Read(request); err == nil {
			_, _ = theirs.Write(reply) // who reads may have seen enough
		}
	}()
	r, err := startRun(t.Context(), pipeEnd{ours}, time.Minute, &fileBlock{id: []byte("id"), length: from + length}, from, length)
	if err != nil {
		return nil, err
	}
	defer r.close()
	var out []byte
	buf := make([]byte, 700)
	for {
		n, err := r.read(buf)
		out = append(out, buf[:n]...)
		if err != nil {
			if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				err = nil
			}
			return out, err
		}
	}
}

func TestRun(t *testing.T) {
	data := random(9, 10000)
	for _, kind := range []uint64{checksumCRC32, checksumCRC32C} {
		for _, tc := range []struct{ from, to int64 }{{0, 10000}, {0, 1}, {511, 513}, {700, 9999}, {9728, 10000}} {
			start := tc.from / 512 * 512
			got, err := serve(t, answer(kind, 512, start, data[start:], 2048), tc.from, tc.to-tc.from)
			if err != nil || !bytes.Equal(got, data[tc.from:tc.to]) {
				t.Errorf("checksums of kind %d, %v: %d bytes, %v", kind, tc, len(got), err)
			}
		}
	}
	good := answer(checksumCRC32C, 512, 0, data, 2048)
	for what, tc := range map[string]struct {
		reply []byte
		want  errs.Kind
	}{
		"no checksums":     {answer(0, 512, 0, data, 2048), errs.Unsupported},
		"no chunks":        {answer(checksumCRC32C, 1<<30, 0, data[:100], 2048), errs.Corrupt},
		"another offset":   {answer(checksumCRC32C, 512, 512, data, 2048), errs.Corrupt},
		"an early end":     {answer(checksumCRC32C, 512, 0, data[:5000], 2048), errs.Corrupt},
		"a refusal":        {protowire.AppendBytes(nil, slices.Concat(number(1, 1), text(5, "no"))), errs.Unavailable},
		"no status":        {protowire.AppendBytes(nil, text(5, "no")), errs.Corrupt},
		"a huge answer":    {protowire.AppendVarint(nil, 1<<40), errs.Corrupt},
		"a cut connection": {good[:len(good)/2], errs.Unknown},
		"nothing":          {nil, errs.Unknown},
	} {
		got, err := serve(t, tc.reply, 0, 10000)
		if err == nil || errs.KindOf(err) != tc.want || !bytes.Equal(got, data[:len(got)]) {
			t.Errorf("%s: %d bytes, %v", what, len(got), err)
		}
	}
	// No bit of packets can be flipped so that other bytes come out.
	for i := 0; i < len(good); i += 3 {
		bad := slices.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if got, err := serve(t, bad, 0, 10000); !bytes.Equal(got, data[:len(got)]) || (err == nil && len(got) != len(data)) {
			t.Fatalf("bit of byte %d: %d bytes, %v", i, len(got), err)
		}
	}
}

func FuzzRun(f *testing.F) {
	data := random(9, 1000)
	f.Add(answer(checksumCRC32C, 512, 0, data, 600))
	f.Add(answer(checksumCRC32, 100, 0, data, 1000))
	f.Fuzz(func(t *testing.T, reply []byte) {
		if got, err := serve(t, reply, 0, 1000); err == nil && len(got) != 1000 {
			t.Errorf("%d bytes without an error", len(got))
		}
	})
}

// A DataNode that says nothing more is left at the deadline of the piece.
func TestRunDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		start := time.Now()
		_, err := startRun(t.Context(), ours, 2*time.Second, &fileBlock{}, 0, 1)
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplicas()
		r.own = map[string]bool{"10.0.0.1": true}
		all := []string{"10.0.0.3:1", "10.0.0.2:1", "10.0.0.1:1"}
		seconds := map[string]bool{}
		for range 100 {
			got := r.order(all)
			if got[0] != "10.0.0.1:1" || len(got) != 3 {
				t.Fatalf("got %v", got)
			}
			seconds[got[1]] = true
		}
		if len(seconds) != 2 {
			t.Error("all readers ask the same")
		}
		r.avoid("10.0.0.1:1")
		if got := r.order(all); got[2] != "10.0.0.1:1" {
			t.Errorf("one that failed: %v", got)
		}
		time.Sleep(avoidFor)
		if got := r.order(all); got[0] != "10.0.0.1:1" {
			t.Errorf("one that failed long ago: %v", got)
		}
		r.avoid("x:1")
		if len(r.failed) != 1 {
			t.Errorf("remembered are %v", r.failed)
		}
	})
}

func TestLocations(t *testing.T) {
	l := newLocations()
	file := func(i int) ufs.Object { return ufs.Object{Path: strconv.Itoa(i)} }
	for i := range maxLocations {
		l.put(file(i), &location{blocks: make([]fileBlock, 1)})
	}
	if l.get(file(0)) == nil {
		t.Error("the first is forgotten too early")
	}
	l.put(file(maxLocations), &location{blocks: make([]fileBlock, 1)})
	if l.get(file(0)) == nil || l.get(file(1)) != nil || len(l.byFile) != maxLocations {
		t.Error("not the one that was not used for longest is forgotten")
	}
	l.put(file(-1), &location{blocks: make([]fileBlock, maxBlocks+1)})
	if len(l.byFile) != 1 || l.get(file(-1)) == nil || l.blocks != maxBlocks+1 {
		t.Errorf("%d files with %d blocks", len(l.byFile), l.blocks)
	}
	l.drop(file(-1))
	if l.used.Len() != 0 || l.blocks != 0 {
		t.Errorf("left are %d, %d blocks", l.used.Len(), l.blocks)
	}
}

// What would come out as other bytes than those of the file is refused.
func TestLocateRefuses(t *testing.T) {
	status := func(fields ...[]byte) *hdfs.FileStatus {
		st := new(hdfs.FileStatus)
		if err := (proto.UnmarshalOptions{AllowPartial: true}).Unmarshal(slices.Concat(fields...), st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	message := func(num protowire.Number, m []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), m)
	}
	blocks := func(offsets ...uint64) []byte {
		var out []byte
		for _, off := range offsets {
			out = append(out, message(2, slices.Concat(message(1, slices.Concat(text(1, "pool"), number(2, 5), number(3, 6), number(4, 100))), number(2, off),
				message(5, slices.Concat(text(1, ""), text(2, ""), text(3, ""), text(4, "")))))...)
		}
		return message(12, out)
	}
	if l, err := locate(status(blocks(0, 100)), false); err != nil || len(l.blocks) != 2 || l.complete() {
		t.Errorf("%+v, %v", l, err)
	} else if b, err := l.at(100); err != nil || b.start != 100 {
		t.Errorf("%+v, %v", b, err)
	} else if _, err := l.at(200); !errors.Is(err, errs.Unavailable) {
		t.Errorf("behind the end: %v", err)
	}
	for what, tc := range map[string]struct {
		st   *hdfs.FileStatus
		want errs.Kind
	}{
		"erasure-coded": {status(blocks(0), message(17, number(4, 1))), errs.Unsupported},
		"encrypted":     {status(blocks(0), message(15, nil)), errs.Unsupported},
		"no locations":  {status(), errs.Unsupported},
		"a gap":         {status(blocks(0, 101)), errs.Unavailable},
		"no start":      {status(blocks(100)), errs.Unavailable},
	} {
		if _, err := locate(tc.st, false); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestFailed(t *testing.T) {
	bad, gone := errs.E(errs.Corrupt, "", "", nil), errors.New("gone")
	for _, tc := range []struct {
		failures []error
		want     errs.Kind
	}{
		{nil, errs.Unavailable},
		{[]error{bad, bad}, errs.Corrupt},
		{[]error{bad, gone}, errs.Unavailable},
		{[]error{gone, bad}, errs.Unavailable},
		{[]error{gone}, errs.Unavailable},
	} {
		if err := failed(tc.failures); errs.KindOf(err) != tc.want {
			t.Errorf("%v: %v", tc.failures, err)
		}
	}
}

// standby is a NameNode that answers every call with an exception.
func standby(t *testing.T, exception string) (address string, calls *atomic.Int64) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	calls = new(atomic.Int64)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := io.CopyN(io.Discard, conn, 7); err != nil {
					return
				}
				for {
					var size [4]byte
					if _, err := io.ReadFull(conn, size[:]); err != nil {
						return
					}
					p := make([]byte, binary.BigEndian.Uint32(size[:]))
					if _, err := io.ReadFull(conn, p); err != nil {
						return
					}
					header, _ := protowire.ConsumeBytes(p)
					var id uint64
					_ = fields(header, func(num int, value uint64, _ []byte) error {
						if num == 3 {
							id = uint64(uint32(protowire.DecodeZigZag(value)))
						}
						return nil
					})
					if int32(uint32(id)) < 0 {
						continue // the context of the connection
					}
					calls.Add(1)
					answer := slices.Concat(number(1, id), number(2, 1), text(4, exception), text(5, "not me"))
					if _, err := conn.Write(packet(answer)); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), calls
}

// A standby is asked until the context ends; what is no matter of who answers
// is not asked again.
func TestExceptions(t *testing.T) {
	for exception, want := range map[string]struct {
		kind  errs.Kind
		again bool
	}{
		"org.apache.hadoop.ipc.StandbyException":                   {errs.Unavailable, true},
		"org.apache.hadoop.ipc.RetriableException":                 {errs.Unavailable, true},
		"org.apache.hadoop.ipc.RpcNoSuchMethodException":           {errs.Unsupported, false},
		"org.apache.hadoop.security.AccessControlException":        {errs.Permission, false},
		"org.apache.hadoop.fs.ParentNotDirectoryException":         {errs.NotFound, false},
		"java.io.FileNotFoundException":                            {errs.NotFound, false},
		"java.lang.IllegalStateException":                          {errs.Unavailable, false},
		"org.apache.hadoop.hdfs.server.namenode.SafeModeException": {errs.Unavailable, true},
	} {
		address, calls := standby(t, exception)
		s, err := open(ufs.Config{URI: "hdfs://" + address, Options: map[string]string{"user": "u", "clients": "1"}})
		if err != nil {
			t.Fatal(err)
		}
		s.nameNode.budget = 500 * time.Millisecond
		_, err = s.Stat(t.Context(), "a")
		if !errors.Is(err, want.kind) || (calls.Load() > 1) != want.again {
			t.Errorf("%s: %v after %d calls", exception, err, calls.Load())
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Stat(ctx, "a"); !errors.Is(err, errs.Canceled) {
			t.Errorf("%s: %v", exception, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestTag(t *testing.T) {
	v := version{fileID: 16392, mtime: 1700000000123, length: 4096}
	if d := cmp.Diff("4008-18bcfe5687b-1000", v.tag()); d != "" {
		t.Error(d)
	}
}
