package hdfsfs

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/colinmarc/hdfs/v2/hadoopconf"
	krbclient "github.com/jcmturner/gokrb5/v8/client"
	krbconfig "github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/keytab"

	"millrace/internal/errs"
	"millrace/ufs"
)

// The option keys of an HDFS under-store mount.
const (
	optNameNodes         = "namenodes"          // HOST:PORT[,HOST:PORT...]; default by the URI and the configuration
	optUser              = "user"               // whom the NameNode sees; default HADOOP_USER_NAME, else the process's
	optConfDir           = "conf_dir"           // with core-site.xml and hdfs-site.xml; default HADOOP_CONF_DIR
	optKeytab            = "keytab"             // file; switches Kerberos on
	optPrincipal         = "principal"          // NAME@REALM, of the keytab
	optKrb5Conf          = "krb5_conf"          // default KRB5_CONFIG, else /etc/krb5.conf
	optNameNodePrincipal = "namenode_principal" // default dfs.namenode.kerberos.principal, else nn/_HOST
	optUseHostname       = "use_hostname"       // DataNodes by name; default dfs.client.use.datanode.hostname
	optDataNodeTimeout   = "datanode_timeout"   // without a byte from a DataNode; default 2s
	optNameNodeTimeout   = "namenode_timeout"   // of one call of a NameNode; default 5s
	optClients           = "clients"            // connections to the NameNode, default 4
)

const (
	scheme                 = "hdfs://"
	defaultPort            = "8020"
	defaultDataNodeTimeout = 2 * time.Second
	defaultNameNodeTimeout = 5 * time.Second
	minTimeout             = 10 * time.Millisecond
	maxTimeout             = 5 * time.Minute
	defaultClients         = 4
	maxClients             = 64
)

// settings are the parsed URI, options and configuration of Hadoop.
type settings struct {
	authority         string
	dir               string // absolute; "/" for the root
	nameNodes         []string
	user              string
	kerberos          *krbclient.Client // nil: none
	nameNodePrincipal string
	useHostname       bool
	protectedData     bool // DataNodes want SASL, unless their port is privileged
	dataNodeTimeout   time.Duration
	nameNodeTimeout   time.Duration
	clients           int
}

func parse(cfg ufs.Config) (settings, error) {
	var s settings
	rest, ok := strings.CutPrefix(cfg.URI, scheme)
	bad := func(err error) error { return errs.E(errs.Invalid, "open under-store", cfg.URI, err) }
	if !ok {
		return s, bad(errors.New("want hdfs://NAMENODE[:PORT]/DIR"))
	}
	var dir string
	s.authority, dir, _ = strings.Cut(rest, "/")
	dir = strings.TrimSuffix(dir, "/")
	if !validPath(dir) {
		return s, bad(fmt.Errorf(`%q is no directory of HDFS: it has an empty component, "." or "..", or is not UTF-8`, dir))
	}
	s.dir = "/" + dir
	err := ufs.CheckOptions(cfg, optNameNodes, optUser, optConfDir, optKeytab, optPrincipal, optKrb5Conf,
		optNameNodePrincipal, optUseHostname, optDataNodeTimeout, optNameNodeTimeout, optClients)
	if err != nil {
		return s, err
	}
	conf, err := loadConf(cfg.Options[optConfDir])
	if err != nil {
		return s, bad(err)
	}
	if err := s.setOptions(cfg.Options, conf); err != nil {
		return s, bad(err)
	}
	return s, nil
}

// loadConf reads Hadoop's own configuration: that of dir, which must be there,
// else that of the environment, which may be missing.
func loadConf(dir string) (hadoopconf.HadoopConf, error) {
	if dir == "" {
		conf, err := hadoopconf.LoadFromEnvironment()
		if err != nil {
			return nil, fmt.Errorf("configuration of Hadoop (HADOOP_CONF_DIR): %w", err)
		}
		return conf, nil
	}
	conf, err := hadoopconf.Load(dir)
	switch {
	case err != nil:
		return nil, fmt.Errorf("option %s: %w", optConfDir, err)
	case conf == nil:
		return nil, fmt.Errorf("option %s: no core-site.xml or hdfs-site.xml in %s", optConfDir, dir)
	}
	return conf, nil
}

func (s *settings) setOptions(options map[string]string, conf hadoopconf.HadoopConf) error {
	var err error
	if s.nameNodes, err = nameNodes(s.authority, options[optNameNodes], conf); err != nil {
		return err
	}
	s.dataNodeTimeout, s.nameNodeTimeout, s.clients = defaultDataNodeTimeout, defaultNameNodeTimeout, defaultClients
	if err := setTimeout(options, optDataNodeTimeout, &s.dataNodeTimeout); err != nil {
		return err
	}
	if err := setTimeout(options, optNameNodeTimeout, &s.nameNodeTimeout); err != nil {
		return err
	}
	if v := options[optClients]; v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxClients {
			return fmt.Errorf("option %s: want a number from 1 to %d, not %q", optClients, maxClients, v)
		}
		s.clients = n
	}
	s.useHostname = conf["dfs.client.use.datanode.hostname"] == "true"
	if v := options[optUseHostname]; v != "" {
		if s.useHostname, err = strconv.ParseBool(v); err != nil {
			return fmt.Errorf("option %s: want true or false, not %q", optUseHostname, v)
		}
	}
	s.protectedData = conf["dfs.data.transfer.protection"] != "" || conf["dfs.encrypt.data.transfer"] == "true"
	return s.setIdentity(options, conf)
}

func setTimeout(options map[string]string, key string, to *time.Duration) error {
	v := options[key]
	if v == "" {
		return nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < minTimeout || d > maxTimeout {
		return fmt.Errorf("option %s: want a time from %v to %v, not %q", key, minTimeout, maxTimeout, v)
	}
	*to = d
	return nil
}

// nameNodes returns the addresses to ask, in this order: those of the option,
// those that the configuration gives the nameservice, the authority itself.
func nameNodes(authority, option string, conf hadoopconf.HadoopConf) ([]string, error) {
	if option != "" {
		return addresses(strings.Split(option, ","))
	}
	if authority == "" {
		rest, ok := strings.CutPrefix(conf["fs.defaultFS"], scheme)
		if authority, _, _ = strings.Cut(rest, "/"); !ok || authority == "" {
			return nil, errors.New("the URI names no NameNode, and no fs.defaultFS is configured: want hdfs://NAMENODE[:PORT]/DIR")
		}
	}
	if ids := conf["dfs.ha.namenodes."+authority]; ids != "" {
		var list []string
		for id := range strings.SplitSeq(ids, ",") {
			key := "dfs.namenode.rpc-address." + authority + "." + strings.TrimSpace(id)
			if conf[key] == "" {
				return nil, fmt.Errorf("the configuration names the NameNode %s of %s and not its address, %s", id, authority, key)
			}
			list = append(list, conf[key])
		}
		return addresses(list)
	}
	return addresses([]string{authority})
}

func addresses(list []string) ([]string, error) {
	out := make([]string, 0, len(list))
	for _, a := range list {
		a = strings.TrimSpace(a)
		if !strings.Contains(a, ":") {
			a = net.JoinHostPort(a, defaultPort)
		}
		host, port, err := net.SplitHostPort(a)
		if n, perr := strconv.Atoi(port); err != nil || host == "" || perr != nil || n < 1 || n > 65535 {
			return nil, fmt.Errorf("%q is no address of a NameNode: want HOST[:PORT]", a)
		}
		out = append(out, a)
	}
	return out, nil
}

// setIdentity sets who asks.
func (s *settings) setIdentity(options map[string]string, conf hadoopconf.HadoopConf) error {
	if options[optKeytab] != "" {
		return s.setKerberos(options, conf)
	}
	for _, key := range []string{optPrincipal, optKrb5Conf, optNameNodePrincipal} {
		if options[key] != "" {
			return fmt.Errorf("option %s is for Kerberos, which needs the option %s", key, optKeytab)
		}
	}
	if strings.EqualFold(conf["hadoop.security.authentication"], "kerberos") {
		return fmt.Errorf("the configuration asks for Kerberos: set the options %s and %s", optKeytab, optPrincipal)
	}
	s.user = options[optUser]
	if s.user == "" {
		s.user = os.Getenv("HADOOP_USER_NAME") //nolint:forbidigo // as all of Hadoop's clients do
	}
	if s.user == "" {
		u, err := user.Current()
		if err != nil {
			return fmt.Errorf("option %s: %w", optUser, err)
		}
		s.user = u.Username
	}
	return nil
}

// setKerberos prepares a login by keytab, which the first call makes.
func (s *settings) setKerberos(options map[string]string, conf hadoopconf.HadoopConf) error {
	if options[optUser] != "" {
		return fmt.Errorf("options %s and %s exclude each other: Kerberos says who asks", optUser, optKeytab)
	}
	name, realm, ok := strings.Cut(options[optPrincipal], "@")
	if !ok || name == "" || realm == "" {
		return fmt.Errorf("option %s: want NAME@REALM, not %q", optPrincipal, options[optPrincipal])
	}
	keys, err := keytab.Load(options[optKeytab])
	if err != nil {
		return fmt.Errorf("option %s: %w", optKeytab, err)
	}
	path := options[optKrb5Conf]
	if path == "" {
		path = os.Getenv("KRB5_CONFIG") //nolint:forbidigo // as all users of Kerberos do
	}
	if path == "" {
		path = "/etc/krb5.conf"
	}
	krb, err := krbconfig.Load(path)
	if err != nil {
		return fmt.Errorf("option %s: %w", optKrb5Conf, err)
	}
	s.kerberos = krbclient.NewWithKeytab(name, realm, keys, krb, krbclient.DisablePAFXFAST(true))
	principal := options[optNameNodePrincipal]
	if principal == "" {
		principal = conf["dfs.namenode.kerberos.principal"]
	}
	if principal == "" {
		principal = "nn/_HOST"
	}
	s.nameNodePrincipal, _, _ = strings.Cut(principal, "@")
	return nil
}
