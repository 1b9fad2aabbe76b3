// Command judges says what others make of our objects: kstatus, which kubectl wait, Flux and kpt read conditions with,
// and Argo CD, which runs a Lua script for each kind.
//
//	judges HEALTH.LUA < objects.json > verdicts.json
//
// In: a JSON list of Kubernetes objects. Out: a list of {"kstatus", "argo", "argoMessage"}, one for each. Nothing is
// judged here: the first is upstream's library, the second our script in the interpreter that Argo CD embeds.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kubejson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type verdict struct {
	Kstatus     string `json:"kstatus"`
	Argo        string `json:"argo"`
	ArgoMessage string `json:"argoMessage"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "judges:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) != 1 {
		return fmt.Errorf("usage: judges HEALTH.LUA < objects.json")
	}
	script, err := os.ReadFile(arguments[0])
	if err != nil {
		return err
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var objects []any
	if err := kubejson.Unmarshal(text, &objects); err != nil { // whole numbers stay whole
		return fmt.Errorf("standard input is not a JSON list of objects: %w", err)
	}
	verdicts := make([]verdict, 0, len(objects))
	for number, object := range objects {
		found, err := judge(object.(map[string]any), string(script))
		if err != nil {
			return fmt.Errorf("object %d: %w", number, err)
		}
		verdicts = append(verdicts, found)
	}
	return json.NewEncoder(os.Stdout).Encode(verdicts)
}

func judge(object map[string]any, script string) (verdict, error) {
	result, err := status.Compute(&unstructured.Unstructured{Object: object})
	if err != nil {
		return verdict{}, fmt.Errorf("kstatus: %w", err)
	}
	health, message, err := argoHealth(object, script)
	if err != nil {
		return verdict{}, fmt.Errorf("health.lua: %w", err)
	}
	return verdict{result.Status.String(), health, message}, nil
}
