// Command packages reads what `wasm-epp package` wrote with the library that Istio, Envoy Gateway and crane read
// images with (go-containerregistry), by way of a registry in this process:
//
//	packages IMAGES OUT
//
// pushes each image layout in the folder IMAGES, fetches it as their Wasm fetchers do, and writes what they would
// load to OUT/NAME.wasm. The rules are those of istio pkg/wasm/imagefetcher.go and envoyproxy/gateway
// internal/wasm/imagefetcher.go: the last layer has to be of OCI's type and hold a file plugin.wasm. The archive beside each
// layout has to be the same image.
package main

import (
	"archive/tar"
	"compress/gzip"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: packages IMAGES OUT")
	}
	images, out := os.Args[1], os.Args[2]
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	entries, err := os.ReadDir(images)
	if err != nil {
		log.Fatal(err)
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		folder := filepath.Join(images, entry.Name())
		if err := check(folder, strings.TrimPrefix(server.URL, "http://"), out); err != nil {
			log.Fatalf("%s: %v", folder, err)
		}
	}
}

func check(folder, host, out string) error {
	index, err := layout.ImageIndexFromPath(folder)
	if err != nil {
		return err
	}
	if err := validate.Index(index); err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	if len(manifest.Manifests) != 1 {
		return fmt.Errorf("%d manifests in the index", len(manifest.Manifests))
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		return err
	}
	// What `docker load` reads.
	archived, err := tarball.ImageFromPath(folder+".tar", nil)
	if err != nil {
		return err
	}
	if err := validate.Image(archived); err != nil {
		return err
	}
	if err := sameConfig(image, archived); err != nil {
		return err
	}

	short := filepath.Base(folder)
	ref, err := name.ParseReference(host+"/wasm-epp/"+short+":test", name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.Write(ref, image); err != nil {
		return err
	}
	described, err := remote.Get(ref)
	if err != nil {
		return err
	}
	fetched, err := described.Image()
	if err != nil {
		return err
	}
	module, err := wasm(fetched)
	if err != nil {
		// The daemon's image is not for them.
		fmt.Printf("%s: no module: %v\n", short, err)
		return nil
	}
	fmt.Printf("%s: %d bytes\n", short, len(module))
	return os.WriteFile(filepath.Join(out, short+".wasm"), module, 0o644)
}

func sameConfig(one, other v1.Image) error {
	a, err := one.ConfigName()
	if err != nil {
		return err
	}
	b, err := other.ConfigName()
	if err != nil {
		return err
	}
	if a != b {
		return fmt.Errorf("the layout's image is %s, the archive's %s", a, b)
	}
	return nil
}

func wasm(image v1.Image) ([]byte, error) {
	manifest, err := image.Manifest()
	if err != nil {
		return nil, err
	}
	layers, err := image.Layers()
	if err != nil {
		return nil, err
	}
	if len(layers) == 0 {
		return nil, fmt.Errorf("no layers")
	}
	last := layers[len(layers)-1]
	kind, err := last.MediaType()
	if err != nil {
		return nil, err
	}
	expected := types.OCILayer
	if manifest.MediaType == types.DockerManifestSchema2 {
		expected = types.DockerLayer
	}
	if kind != expected {
		return nil, fmt.Errorf("the last layer is %s and not %s", kind, expected)
	}
	compressed, err := last.Compressed()
	if err != nil {
		return nil, err
	}
	defer compressed.Close()
	unpacked, err := gzip.NewReader(compressed)
	if err != nil {
		return nil, err
	}
	archive := tar.NewReader(unpacked)
	for {
		entry, err := archive.Next()
		if err == io.EOF {
			return nil, fmt.Errorf("no plugin.wasm in the last layer")
		}
		if err != nil {
			return nil, err
		}
		if filepath.Base(entry.Name) == "plugin.wasm" {
			return io.ReadAll(archive)
		}
	}
}
