// Command proto-check prints, as JSON on its standard output, the contracts that expedited keeps a subset of, as
// upstream's own Go modules carry them: containerd's API, NRI, ttrpc and Kubernetes' CRI. The versions are go.mod's.
//
// plugin/tests/test_proto_subset.py builds and runs it and compares the answer with proto/, field by field.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	_ "github.com/containerd/containerd/api/events"
	_ "github.com/containerd/containerd/api/services/containers/v1"
	_ "github.com/containerd/containerd/api/services/events/v1"
	_ "github.com/containerd/containerd/api/services/namespaces/v1"
	_ "github.com/containerd/containerd/api/services/tasks/v1"
	_ "github.com/containerd/containerd/api/services/version/v1"
	_ "github.com/containerd/nri/pkg/api"
	_ "github.com/containerd/ttrpc"
	_ "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// packages are the roots of what is printed: a package of this name or below it.
var packages = []string{"containerd", "nri.pkg.api", "ttrpc", "google.rpc"}

type field struct {
	Number int32  `json:"number"`
	Label  string `json:"label"` // optional, required or repeated; a map is repeated, of its entry's message
	Type   string `json:"type"`  // a scalar's keyword, or the full name of a message or an enum
	Oneof  string `json:"oneof"` // empty outside of one; proto3's "optional" makes one of its own
}

type method struct {
	Input           string `json:"input"`
	Output          string `json:"output"`
	ClientStreaming bool   `json:"client_streaming"`
	ServerStreaming bool   `json:"server_streaming"`
}

type contract struct {
	Messages map[string]map[string]field  `json:"messages"`
	Enums    map[string]map[string]int32  `json:"enums"`
	Services map[string]map[string]method `json:"services"`
}

func (c *contract) addFile(file protoreflect.FileDescriptor) {
	c.addMessages(file.Messages())
	c.addEnums(file.Enums())
	services := file.Services()
	for i := 0; i < services.Len(); i++ {
		methods := map[string]method{}
		for j := 0; j < services.Get(i).Methods().Len(); j++ {
			m := services.Get(i).Methods().Get(j)
			methods[string(m.Name())] = method{
				string(m.Input().FullName()), string(m.Output().FullName()), m.IsStreamingClient(), m.IsStreamingServer(),
			}
		}
		c.Services[string(services.Get(i).FullName())] = methods
	}
}

func (c *contract) addMessages(messages protoreflect.MessageDescriptors) {
	for i := 0; i < messages.Len(); i++ {
		message := messages.Get(i)
		fields := map[string]field{}
		for j := 0; j < message.Fields().Len(); j++ {
			f := message.Fields().Get(j)
			described := field{int32(f.Number()), f.Cardinality().String(), f.Kind().String(), ""}
			if f.Message() != nil {
				described.Type = string(f.Message().FullName())
			} else if f.Enum() != nil {
				described.Type = string(f.Enum().FullName())
			}
			if f.ContainingOneof() != nil {
				described.Oneof = string(f.ContainingOneof().Name())
			}
			fields[string(f.Name())] = described
		}
		c.Messages[string(message.FullName())] = fields
		c.addMessages(message.Messages())
		c.addEnums(message.Enums())
	}
}

func (c *contract) addEnums(enums protoreflect.EnumDescriptors) {
	for i := 0; i < enums.Len(); i++ {
		values := map[string]int32{}
		for j := 0; j < enums.Get(i).Values().Len(); j++ {
			value := enums.Get(i).Values().Get(j)
			values[string(value.Name())] = int32(value.Number())
		}
		c.Enums[string(enums.Get(i).FullName())] = values
	}
}

// criFile reads the CRI's descriptor from the compressed form that every generated message hands out: this version
// of the module is not in the registry, as it is made by another generator than google's.
func criFile() (protoreflect.FileDescriptor, error) {
	compressed, _ := (&cri.VersionRequest{}).Descriptor()
	reader, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(reader)
	if err != nil {
		return nil, err
	}
	file := &descriptorpb.FileDescriptorProto{}
	if err := proto.Unmarshal(raw, file); err != nil {
		return nil, err
	}
	return protodesc.FileOptions{AllowUnresolvable: true}.New(file, protoregistry.GlobalFiles)
}

func wanted(name protoreflect.FullName) bool {
	for _, root := range packages {
		if string(name) == root || strings.HasPrefix(string(name), root+".") {
			return true
		}
	}
	return false
}

func main() {
	all := &contract{map[string]map[string]field{}, map[string]map[string]int32{}, map[string]map[string]method{}}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if wanted(file.Package()) {
			all.addFile(file)
		}
		return true
	})
	file, err := criFile()
	if err == nil {
		all.addFile(file)
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", " ")
		err = encoder.Encode(all)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "proto-check:", err)
		os.Exit(1)
	}
}
