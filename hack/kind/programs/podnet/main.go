// Command podnet gives the pods of a kind node their network, where kind's own image of kindnet can't be had. It runs on
// every node and keeps three things true: the CNI configuration hands out addresses of this node's range, a route leads
// to every other node's range, and what leaves the cluster carries the node's address.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	interval      = 2 * time.Second
	configuration = "/etc/cni/net.d/10-podnet.conflist"
	conflist      = `{"cniVersion": "0.3.1", "name": "podnet", "plugins": [
  {"type": "ptp", "ipMasq": false,
   "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": %q}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	config, err := rest.InClusterConfig()
	if err != nil {
		slog.Error("podnet runs in a pod only", "error", err)
		os.Exit(1)
	}
	config.Timeout = 10 * time.Second
	client := kubernetes.NewForConfigOrDie(config)
	for {
		nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err == nil {
			err = apply(nodes.Items, os.Getenv("NODE_NAME"), os.Getenv("POD_SUBNET"))
		}
		if err != nil && ctx.Err() == nil {
			slog.Error("the pods' network is not up to date; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		}
	}
}

func apply(nodes []corev1.Node, self, podSubnet string) error {
	for _, node := range nodes {
		if node.Spec.PodCIDR == "" {
			continue // the controller manager has not given it one yet
		}
		var err error
		if node.Name == self {
			err = configure(node.Spec.PodCIDR, podSubnet)
		} else {
			err = route(node)
		}
		if err != nil {
			return fmt.Errorf("node %s: %w", node.Name, err)
		}
	}
	return nil
}

func configure(podCIDR, podSubnet string) error {
	rule := []string{"POSTROUTING", "-s", podCIDR, "!", "-d", podSubnet, "-j", "MASQUERADE"}
	if iptables(append([]string{"-C"}, rule...)) != nil { // not there yet
		if err := iptables(append([]string{"-A"}, rule...)); err != nil {
			return err
		}
	}
	wanted := fmt.Sprintf(conflist, podCIDR)
	if found, err := os.ReadFile(configuration); err == nil && string(found) == wanted {
		return nil
	}
	// Renamed into its place: containerd watches the folder and never reads half a file.
	partial := filepath.Join(filepath.Dir(configuration), ".podnet")
	if err := os.WriteFile(partial, []byte(wanted), 0o644); err != nil {
		return err
	}
	return os.Rename(partial, configuration)
}

func iptables(arguments []string) error {
	output, err := exec.Command("iptables", append([]string{"-w", "-t", "nat"}, arguments...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables: %w: %s", err, output)
	}
	return nil
}

func route(node corev1.Node) error {
	_, destination, err := net.ParseCIDR(node.Spec.PodCIDR)
	if err != nil {
		return err
	}
	for _, address := range node.Status.Addresses {
		if gateway := net.ParseIP(address.Address).To4(); address.Type == corev1.NodeInternalIP && gateway != nil {
			return netlink.RouteReplace(&netlink.Route{Dst: destination, Gw: gateway})
		}
	}
	return nil // a node that has just joined has no address
}
