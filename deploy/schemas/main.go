// Command schemas writes the JSON schemas that kubeconform checks the chart's manifests with. They are made of the OpenAPI
// documents inside the Go modules of Kubernetes and of the Prometheus operator, so that no other network service is needed.
//
//	go run ./deploy/schemas -out .tools/schemas
//
// Every object with declared fields refuses others, and apiVersion and kind must be those of the file's name: what the API server
// would silently drop is an error here.
//
// How to add a kind: a line in coreKinds (its definition's name in the swagger document) or in customKinds (its file in the operator's module).
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	kubernetesModule = "k8s.io/kubernetes@v1.34.1"
	operatorModule   = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
)

// coreKinds are the definitions of the kinds that the chart makes.
var coreKinds = []string{
	"io.k8s.api.apps.v1.Deployment",
	"io.k8s.api.core.v1.ConfigMap",
	"io.k8s.api.core.v1.Pod",
	"io.k8s.api.core.v1.Secret",
	"io.k8s.api.core.v1.Service",
	"io.k8s.api.core.v1.ServiceAccount",
	"io.k8s.api.networking.v1.NetworkPolicy",
	"io.k8s.api.policy.v1.PodDisruptionBudget",
}

// customKinds are the files of the custom resources, below the operator's module.
var customKinds = []string{
	"jsonnet/prometheus-operator/prometheusrules-crd.json",
	"jsonnet/prometheus-operator/servicemonitors-crd.json",
}

func main() {
	out := flag.String("out", ".tools/schemas", "directory to write the schemas to")
	flag.Parse()
	if err := run(*out); err != nil {
		slog.Error("schemas not written", "error", err)
		os.Exit(1)
	}
}

func run(out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	if err := writeCore(out); err != nil {
		return err
	}
	return writeCustom(out)
}

// moduleDir downloads a module into the module cache, if it is not there, and returns its directory.
func moduleDir(module string) (string, error) {
	// Outside this module, so that neither go.mod nor go.sum is touched.
	dir, err := os.MkdirTemp("", "schemas")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Dir = dir
	text, err := cmd.Output()
	var found struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(text, &found); jsonErr == nil && found.Error != "" {
		err = errors.New(found.Error)
	}
	if err != nil {
		return "", fmt.Errorf("download module %s: %w: check the network and GOPROXY", module, err)
	}
	return found.Dir, nil
}

type schema = map[string]any

func writeCore(out string) error {
	dir, err := moduleDir(kubernetesModule)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, "api", "openapi-spec", "swagger.json"))
	if err != nil {
		return err
	}
	var document struct {
		Definitions map[string]schema `json:"definitions"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return fmt.Errorf("decode the OpenAPI document of %s: %w", kubernetesModule, err)
	}
	for _, name := range coreKinds {
		definition, ok := document.Definitions[name]
		if !ok {
			return fmt.Errorf("%s has no definition %s", kubernetesModule, name)
		}
		used := schema{}
		collect(definition, document.Definitions, used)
		closeObjects(definition)
		for _, d := range used {
			closeObjects(d)
		}
		kinds, _ := definition["x-kubernetes-group-version-kind"].([]any)
		if len(kinds) == 0 {
			return fmt.Errorf("definition %s names no group, version and kind", name)
		}
		gvk := kinds[0].(schema)
		top := schema{}
		for k, v := range definition {
			top[k] = v
		}
		top["definitions"] = used
		if err := write(out, top, gvk["group"].(string), gvk["version"].(string), gvk["kind"].(string)); err != nil {
			return err
		}
	}
	return nil
}

// special replaces definitions that the swagger document describes more loosely or more strictly than the API server reads them.
var special = map[string]schema{
	"io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"oneOf": []any{schema{"type": "string"}, schema{"type": "integer"}}},
	"io.k8s.apimachinery.pkg.api.resource.Quantity":   {"oneOf": []any{schema{"type": "string"}, schema{"type": "number"}}},
}

// collect puts every definition that s refers to, directly or not, into used.
func collect(s any, all map[string]schema, used schema) {
	switch v := s.(type) {
	case schema:
		if ref, ok := v["$ref"].(string); ok {
			name := strings.TrimPrefix(ref, "#/definitions/")
			if _, done := used[name]; done {
				return
			}
			d := all[name]
			if replacement, ok := special[name]; ok {
				d = replacement
			}
			used[name] = d
			collect(d, all, used)
		}
		for _, child := range v {
			collect(child, all, used)
		}
	case []any:
		for _, child := range v {
			collect(child, all, used)
		}
	}
}

// closeObjects refuses undeclared fields wherever fields are declared.
func closeObjects(s any) {
	switch v := s.(type) {
	case schema:
		if _, has := v["properties"].(schema); has && v["additionalProperties"] == nil && v["x-kubernetes-preserve-unknown-fields"] != true {
			v["additionalProperties"] = false
		}
		if v["x-kubernetes-int-or-string"] == true {
			delete(v, "type")
		}
		for _, child := range v {
			closeObjects(child)
		}
	case []any:
		for _, child := range v {
			closeObjects(child)
		}
	}
}

func writeCustom(out string) error {
	dir, err := moduleDir(operatorModule)
	if err != nil {
		return err
	}
	for _, file := range customKinds {
		text, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(file)))
		if err != nil {
			return err
		}
		var crd struct {
			Spec struct {
				Group string
				Names struct{ Kind string }
				// Versions carry one schema each.
				Versions []struct {
					Name   string
					Schema struct{ OpenAPIV3Schema schema }
				}
			}
		}
		if err := json.Unmarshal(text, &crd); err != nil {
			return fmt.Errorf("decode %s: %w", file, err)
		}
		for _, version := range crd.Spec.Versions {
			s := version.Schema.OpenAPIV3Schema
			closeObjects(s)
			if err := write(out, s, crd.Spec.Group, version.Name, crd.Spec.Names.Kind); err != nil {
				return err
			}
		}
	}
	return nil
}

// write stores a kind's schema under the name by which kubeconform's template asks for it: kind-group-version.json.
func write(out string, s schema, group, version, kind string) error {
	apiVersion, file := version, fmt.Sprintf("%s-%s.json", kind, version)
	if group != "" {
		apiVersion = group + "/" + version
		file = fmt.Sprintf("%s-%s-%s.json", kind, strings.SplitN(group, ".", 2)[0], version)
	}
	properties, _ := s["properties"].(schema)
	if properties == nil {
		return fmt.Errorf("the schema of %s %s declares no fields", apiVersion, kind)
	}
	properties["apiVersion"] = schema{"enum": []string{apiVersion}}
	properties["kind"] = schema{"enum": []string{kind}}
	s["required"] = []string{"apiVersion", "kind", "metadata"}
	s["$schema"] = "http://json-schema.org/draft-07/schema#"
	text, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, strings.ToLower(file)), text, 0o644)
}
