package hosts

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Drop loses at random one of so many packets that come to a host. It needs a
// kernel with nf_tables.
func (n *Network) Drop(_ context.Context, name string, oneIn uint32) (Heal, error) {
	h := n.hosts[name]
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "loss"}
	err := h.filter(func(c *nftables.Conn) {
		c.AddTable(table)
		input := c.AddChain(&nftables.Chain{
			Name: "input", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: input, Exprs: []expr.Any{
			&expr.Numgen{Register: 1, Modulus: oneIn, Type: unix.NFT_NG_RANDOM},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	})
	if err != nil {
		return nil, fmt.Errorf("lose packets of %s: %w", name, err)
	}
	return func(context.Context) error {
		return h.filter(func(c *nftables.Conn) { c.DelTable(table) })
	}, nil
}

// filter changes the host's packet filter.
func (h *host) filter(change func(*nftables.Conn)) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.holder.PID()))
	if err != nil {
		return err
	}
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err == nil {
		change(c)
		err = c.Flush()
	}
	return errors.Join(err, ns.Close())
}
