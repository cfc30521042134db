package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// OpsServer serves one role's /metrics, /healthz, /readyz and /debug/pprof.
type OpsServer struct {
	l     net.Listener
	log   *slog.Logger
	ready func() error
	mux   *http.ServeMux
}

// InstanceLabel is the label that names a process among several of its role.
const InstanceLabel = "millrace_instance"

// Registry holds the metrics of one role.
type Registry struct {
	prometheus.Registerer
	prometheus.Gatherer
}

// NewRegistry returns a registry that holds the Go runtime's and the
// process's metrics, for one role. Everything in it has the InstanceLabel,
// unless instance is empty.
func NewRegistry(instance string) *Registry {
	all := prometheus.NewRegistry()
	r := &Registry{Registerer: all, Gatherer: all}
	if instance != "" {
		r.Registerer = prometheus.WrapRegistererWith(prometheus.Labels{InstanceLabel: instance}, all)
	}
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// NewOpsServer makes the server of a role on l, which it closes. ready says
// why the role cannot serve yet, or nil; it is called for each /readyz, from
// several goroutines.
func NewOpsServer(l net.Listener, gatherer prometheus.Gatherer, ready func() error, log *slog.Logger) *OpsServer {
	s := &OpsServer{l: l, log: log, ready: ready, mux: http.NewServeMux()}
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok") })
	s.mux.HandleFunc("GET /readyz", s.readyz)
	s.mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	s.mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	s.mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	s.mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	s.mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return s
}

func (s *OpsServer) readyz(w http.ResponseWriter, _ *http.Request) {
	if err := s.ready(); err != nil {
		writeText(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
		return
	}
	writeText(w, http.StatusOK, "ready")
}

func writeText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = fmt.Fprintln(w, text) // the client went away: its loss
}

// Address returns where the server listens.
func (s *OpsServer) Address() string { return s.l.Addr().String() }

// Run serves until ctx ends, then gives requests under way a moment to end.
func (s *OpsServer) Run(ctx context.Context) error {
	srv := &http.Server{
		Handler:           s.mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      5 * time.Minute, // a CPU profile takes as long as it was asked to
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(s.l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve HTTP on %s: %w", s.Address(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		_ = srv.Close() // the requests that did not end in time
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", s.Address(), err)
	}
	return nil
}
